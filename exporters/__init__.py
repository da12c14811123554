"""Out of the job: its status page and journal, and the recorder that reads them and speaks OTLP."""
