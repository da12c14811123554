"""What is worked out about stages and runs, by the job and by the recorder."""
