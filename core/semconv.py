"""Every attribute and metric this product emits, once: the only place where names live.

Names follow OpenTelemetry's naming rules (``{object}.{property}``, units in UCUM, no ``_total``).
``pipeline.*`` has no standard yet (semantic-conventions 3762 is open); ``cicd.pipeline.*`` stands
beside it on run and stage spans.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"
"""Version of the OpenTelemetry conventions that the standard names below follow."""

SCOPE: Final = "stagewatch"
"""Name of the one instrumentation scope of our spans and metrics; it has no version, so that an
upgrade starts no new series."""

# --- span attributes: run ---------------------------------------------------------------------

PIPELINE_NAME: Final = "pipeline.name"
"""Declared name, else DAG id, module or script name."""
RUN_ID: Final = "pipeline.run.id"
"""32 hex digits; never on a metric point."""
RUN_SCHEDULED_TIME: Final = "pipeline.run.scheduled_time"
"""Time the run was due; ISO 8601, UTC."""
RUN_ATTEMPT: Final = "pipeline.run.attempt"
"""1 for the first."""
RUN_OUTCOME: Final = "pipeline.outcome"
"""success, failure, error, timeout, cancellation or skip; of a run or of a stage."""
RUN_DEADLINE: Final = "pipeline.run.deadline"
"""Scheduled time + SLA, or start + maximum duration; ISO 8601, UTC."""
RUN_LATENESS: Final = "pipeline.run.lateness"
"""Seconds past the deadline; 0 when on time."""
RUN_RECORDS_IN: Final = "pipeline.run.records.in"
RUN_RECORDS_OUT: Final = "pipeline.run.records.out"
RUN_RECORDS_REJECTED: Final = "pipeline.run.records.rejected"
RUN_PARENT_ID: Final = "pipeline.run.parent.id"
"""Run that started this one."""
RUN_CPU_TIME: Final = "pipeline.run.cpu.time"
"""Seconds of CPU of the run's own process."""
RUN_MEMORY_PEAK: Final = "pipeline.run.memory.peak"
"""Bytes: peak resident size of the run's own process."""
RUN_WAIT_STATUS: Final = "stagewatch.run.wait_status"
"""As wait(2) gives it; absent where the kernel could not be asked."""
RUN_UNWATCHED: Final = "stagewatch.run.unwatched"
"""Seconds that nobody watched the run, on the notice that says so."""
RUN_DETAILS_CUT: Final = "stagewatch.run.details_cut"
"""Details of the run that were not sent because of the cap per trace."""
ERROR_PLACE: Final = "stagewatch.error.place"
"""File, line and function where the exception was raised, in the user's code if it went through."""

RUN_STAGE: Final = "pipeline.run.stage"
"""Stage the run was in, when something was said of it while it ran, or when its process died."""
RUN_OPERATION: Final = "pipeline.run.operation"
"""Operation that was open then."""
ESCALATION: Final = "pipeline.run.escalation"
"""Severity of the escalation step that a late run has reached."""
PROCESS_PID: Final = "process.pid"
STACKTRACE: Final = "code.stacktrace"
"""Of a run that is stuck, where the user asked for it; taken from outside."""

# --- what is said of a run while it runs: names of short spans, events and log records ----------

ADVICE: Final = "advice"
"""Something about the run that is worth changing."""
RUN_STARTED: Final = "run started"
RUN_LATE: Final = "run late"
RUN_STUCK: Final = "run stuck"
RUN_RESUMED: Final = "run resumed"
"""It had been stuck."""
STAGE_LATE: Final = "stage late"
"""Beyond its declared maximum duration."""
STAGE_SLOW: Final = "stage slow"
"""Below its declared minimum throughput."""
PROCESS_DIED: Final = "process died"
"""One that belonged to the run, but was not the one that opened it: a worker of a pool."""
TELEMETRY_GAP: Final = "telemetry gap"
"""Nobody watched for a while: recorder and keeper were both dead."""

ADVICE_KIND: Final = "pipeline.advice.kind"
"""Such as ``skew``; from a closed set."""
ADVICE_EVIDENCE: Final = "pipeline.advice.evidence"
"""The figures that say so."""
ADVICE_REMEDY: Final = "pipeline.advice.remedy"
"""The setting or the code to change."""

EVENT_PREFIX: Final = "pipeline."
"""Before a name above, its words joined by dots: the event on the run's span, and the log's
``event.name``: ``pipeline.run.late``."""

# --- span attributes: stage -------------------------------------------------------------------

STAGE_NAME: Final = "pipeline.stage.name"
STAGE_RECORDS_IN: Final = "pipeline.stage.records.in"
STAGE_RECORDS_OUT: Final = "pipeline.stage.records.out"
STAGE_RECORDS_REJECTED: Final = "pipeline.stage.records.rejected"
STAGE_THROUGHPUT: Final = "pipeline.stage.throughput"
"""Records per second: out (in, if there is no out) / seconds of the stage."""
STAGE_LATENESS: Final = "pipeline.stage.lateness"
"""Seconds beyond its declared maximum duration, when that was said."""
STAGE_ERROR_RATIO: Final = "pipeline.stage.error.ratio"
"""rejected / (out + rejected); 1 if the stage failed without counts."""
STAGE_RETRIES: Final = "pipeline.stage.retries"
STAGE_BYTES_IN: Final = "pipeline.stage.bytes.in"
"""Bodies of HTTP answers and files read in the stage, where their size was known."""
STAGE_BYTES_OUT: Final = "pipeline.stage.bytes.out"
"""Bodies of HTTP requests and files written."""
STAGE_CPU_TIME: Final = "pipeline.stage.cpu.time"
"""Seconds of CPU of the process while the stage ran."""
STAGE_MEMORY_PEAK: Final = "pipeline.stage.memory.peak"
"""Bytes: peak resident size of the process up to the end of the stage."""

# --- span attributes: operation and dataset ---------------------------------------------------

OPERATION: Final = "operation"
"""Such as ``pandas.merge``; from a closed set, so that it may stand on a metric point."""
ROWS_IN: Final = "pipeline.operation.rows.in"
ROWS_OUT: Final = "pipeline.operation.rows.out"
DATASET_URI: Final = "pipeline.dataset.uri"
"""Without credentials, query string or literals."""
DATASET_DIRECTION: Final = "pipeline.dataset.direction"
"""``in`` or ``out``."""
DATASET_ROWS: Final = "pipeline.dataset.rows"
DATASET_BYTES: Final = "pipeline.dataset.bytes"
DATASET_FINGERPRINT: Final = "pipeline.dataset.schema.fingerprint"
"""Hash of column names and types."""
DATASET_NEWEST_EVENT: Final = "pipeline.dataset.newest_event.time"
"""Newest value of the declared timestamp column; ISO 8601, UTC."""
SPAN_ROLE: Final = "stagewatch.span.role"
"""``detail`` on spans that may be held back, sampled or folded."""
ROLE_DETAIL: Final = "detail"
CODE_FUNCTION_NAME: Final = "code.function.name"
CODE_FILE_PATH: Final = "code.file.path"
CODE_LINE_NUMBER: Final = "code.line.number"
ERROR_TYPE: Final = "error.type"
URL_FULL: Final = "url.full"
"""Without credentials, query string and fragment."""
HTTP_RESEND_COUNT: Final = "http.request.resend_count"
"""How often the request was tried again."""
HTTP_REQUEST_BODY_SIZE: Final = "http.request.body.size"
"""Bytes sent, as the header says."""
HTTP_RESPONSE_BODY_SIZE: Final = "http.response.body.size"
"""Bytes received, as the header says; else of the decoded body, where it was read at once."""

# --- span attributes: Spark -------------------------------------------------------------------
# Of a Spark stage on its span; on the operation's (the action) they are sums over its stages, but
# for skew and peak, which are the largest of them.

SPARK_APPLICATION_ID: Final = "spark.application.id"
"""On the run."""
SPARK_MASTER: Final = "spark.master"
SPARK_UI_URL: Final = "spark.ui.url"
"""Of the running application, or of its history."""
SPARK_JOB: Final = "spark.job"
"""Name of the span of a Spark job."""
SPARK_STAGE: Final = "spark.stage"
"""Name of the span of a Spark stage."""
SPARK_JOB_ID: Final = "spark.job.id"
SPARK_JOBS: Final = "spark.jobs"
"""How many an action ran."""
SPARK_STAGE_ID: Final = "spark.stage.id"
SPARK_STAGE_ATTEMPT: Final = "spark.stage.attempt"
"""0 for the first."""
SPARK_STAGE_NAME: Final = "spark.stage.name"
"""Call site, as Spark shows it."""
SPARK_EXECUTION_ID: Final = "spark.sql.execution.id"
SPARK_PLAN_FINGERPRINT: Final = "spark.plan.fingerprint"
"""Hash of the plan's operators: the same for the same query on other data."""
SPARK_PLAN_CHANGES: Final = "spark.plan.adaptive_changes"
"""How often adaptive execution changed the plan."""
SPARK_INPUT_RECORDS: Final = "spark.input.records"
SPARK_INPUT_BYTES: Final = "spark.input.bytes"
SPARK_INPUT_FILES: Final = "spark.input.files"
SPARK_OUTPUT_RECORDS: Final = "spark.output.records"
SPARK_OUTPUT_BYTES: Final = "spark.output.bytes"
SPARK_OUTPUT_FILES: Final = "spark.output.files"
SPARK_RESULT_BYTES: Final = "spark.result.bytes"
"""Of the rows that came back over Spark Connect, as Arrow holds them."""
SPARK_SHUFFLE_READ_RECORDS: Final = "spark.shuffle.read.records"
SPARK_SHUFFLE_READ_BYTES: Final = "spark.shuffle.read.bytes"
SPARK_SHUFFLE_WRITE_RECORDS: Final = "spark.shuffle.write.records"
SPARK_SHUFFLE_WRITE_BYTES: Final = "spark.shuffle.write.bytes"
SPARK_SHUFFLE_FETCH_WAIT: Final = "spark.shuffle.fetch_wait.time"
"""Seconds, summed over tasks."""
SPARK_SPILL_MEMORY: Final = "spark.spill.memory"
"""Bytes, as they were in memory."""
SPARK_SPILL_DISK: Final = "spark.spill.disk"
"""Bytes, as they were written."""
SPARK_EXECUTOR_RUN_TIME: Final = "spark.executor.run.time"
"""Seconds, summed over tasks; as are the next two."""
SPARK_EXECUTOR_CPU_TIME: Final = "spark.executor.cpu.time"
SPARK_GC_TIME: Final = "spark.gc.time"
SPARK_TASKS: Final = "spark.tasks"
SPARK_TASKS_FAILED: Final = "spark.tasks.failed"
SPARK_TASKS_KILLED: Final = "spark.tasks.killed"
SPARK_TASK_DURATION_MEDIAN: Final = "spark.task.duration.median"
"""Seconds."""
SPARK_TASK_DURATION_MAX: Final = "spark.task.duration.max"
SPARK_TASK_SKEW: Final = "spark.task.skew"
"""Slowest task / median task."""
SPARK_SHUFFLE_SKEW: Final = "spark.shuffle.read.skew"
"""Largest shuffle read of a task / median."""
SPARK_TASK_MEMORY_PEAK: Final = "spark.task.memory.peak"
"""Bytes: most that one task took for execution."""
SPARK_OBSERVED: Final = "spark.observed."
"""Before ``OBSERVATION.METRIC``: numbers that the user had `DataFrame.observe` make."""
SPARK_CONNECT_OPERATION_ID: Final = "spark.connect.operation.id"
SPARK_PYTHON_TASK: Final = "spark.python.task"
"""Name of the span of a task, as a Python worker on an executor sees it."""
SPARK_TASK_ID: Final = "spark.task.id"
"""Its own in the application: each attempt has another."""
SPARK_TASK_ATTEMPT: Final = "spark.task.attempt"
"""0 for the first."""
SPARK_PARTITION_ID: Final = "spark.partition.id"
SPARK_PYTHON_CPU_TIME: Final = "spark.python.cpu.time"
"""Seconds that the Python worker used for the task."""
HOST_NAME: Final = "host.name"
SPARK_QUERY_ID: Final = "spark.streaming.query.id"
"""Of a streaming query, from its checkpoint: the same after a restart. On its run and batches."""
SPARK_QUERY_RUN_ID: Final = "spark.streaming.query.run.id"
"""Of one start of it."""
SPARK_QUERY_NAME: Final = "spark.streaming.query.name"
SPARK_QUERY_TRIGGER: Final = "spark.streaming.trigger.interval"
"""Seconds."""
SPARK_QUERY_BATCHES: Final = "spark.streaming.batches"
"""How many a run of a query has had; on the run."""
SPARK_BATCH: Final = "batch"
"""Name of the stage that each micro-batch is a call of, and of its span."""
SPARK_BATCH_ID: Final = "spark.streaming.batch.id"
SPARK_BATCH_REASON: Final = "spark.streaming.batch.reason"
"""Why it has a span: ``failed``, ``slow``, ``sample`` or ``user`` (spans of the user's own)."""
SPARK_BATCH_TIMES: Final = {
    "latestOffset": "spark.streaming.batch.latest_offset.time",
    "getBatch": "spark.streaming.batch.get_batch.time",
    "queryPlanning": "spark.streaming.batch.query_planning.time",
    "addBatch": "spark.streaming.batch.add_batch.time",
    "walCommit": "spark.streaming.batch.wal_commit.time",
    "commitOffsets": "spark.streaming.batch.commit_offsets.time",
}
"""Seconds that parts of a batch took, by Spark's names of them."""
DATASET_INPUTS: Final = "pipeline.dataset.inputs"
"""URIs of what was read to write the operation's dataset."""

# --- the standard's names beside ours, on run and stage spans only ----------------------------

CICD_PIPELINE_NAME: Final = "cicd.pipeline.name"
CICD_RUN_ID: Final = "cicd.pipeline.run.id"
CICD_RESULT: Final = "cicd.pipeline.result"
CICD_TASK_NAME: Final = "cicd.pipeline.task.name"
CICD_TASK_RUN_ID: Final = "cicd.pipeline.task.run.id"
CICD_TASK_RESULT: Final = "cicd.pipeline.task.run.result"

# --- resource ---------------------------------------------------------------------------------

SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
DEPLOYMENT_ENVIRONMENT: Final = "deployment.environment.name"

METRIC_RESOURCE: Final = (SERVICE_NAMESPACE, SERVICE_NAME, DEPLOYMENT_ENVIRONMENT)
"""What of the user's resource stands on ``pipeline.*`` metrics, beside the state directory's
``service.instance.id``: whatever changes per run would start a new series per run."""

# --- points -----------------------------------------------------------------------------------

DIRECTION: Final = "direction"
"""``in``, ``out`` or ``rejected``."""
DATASET: Final = "dataset"
"""Declared name of a dataset."""
SIGNAL: Final = "signal"
"""``traces``, ``metrics`` or ``logs``."""
REASON: Final = "reason"
"""Why telemetry was dropped; a closed set."""
SOURCE: Final = "source"
"""Who sends the point: ``recorder`` or ``sentinel``; their series never mix."""
OWNER: Final = "owner"
VERSION: Final = "version"

POINT_ATTRIBUTES: Final = frozenset(
    {
        PIPELINE_NAME,
        STAGE_NAME,
        RUN_OUTCOME,
        DIRECTION,
        OPERATION,
        DATASET,
        ERROR_TYPE,
        SIGNAL,
        REASON,
        SOURCE,
    }
)
"""The closed list: nothing else becomes a label, but `OWNER` and `VERSION` on `INFO`."""


class Metric(Struct, frozen=True):
    """One instrument: what it is called, counts and may be split by."""

    name: str
    kind: str
    """``counter``, ``histogram`` or ``gauge``."""
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    """Besides `PIPELINE_NAME` and `SOURCE`."""


RUNS: Final = Metric(
    "pipeline.runs", "counter", "{run}", "Runs that ended.", (RUN_OUTCOME, ERROR_TYPE)
)
RUN_DURATION: Final = Metric(
    "pipeline.run.duration", "histogram", "s", "Duration of runs.", (RUN_OUTCOME,)
)
STAGE_DURATION: Final = Metric(
    "pipeline.stage.duration",
    "histogram",
    "s",
    "Duration of stage calls.",
    (STAGE_NAME, RUN_OUTCOME),
)
RECORDS: Final = Metric(
    "pipeline.records",
    "counter",
    "{record}",
    "Records read, written and rejected.",
    (STAGE_NAME, DIRECTION),
)
THROUGHPUT: Final = Metric(
    "pipeline.stage.throughput",
    "gauge",
    "{record}/s",
    "Records per second of the stage's last run.",
    (STAGE_NAME,),
)
ERRORS: Final = Metric(
    "pipeline.errors", "counter", "{error}", "Failed stage calls.", (STAGE_NAME, ERROR_TYPE)
)
ERROR_RATIO: Final = Metric(
    "pipeline.stage.error.ratio",
    "gauge",
    "1",
    "rejected / (out + rejected) of the stage's last run; 1 if it failed without counts.",
    (STAGE_NAME,),
)
OPERATIONS: Final = Metric(
    "pipeline.operations",
    "counter",
    "{operation}",
    "Library calls, folded or not.",
    (STAGE_NAME, OPERATION),
)
OPERATION_TIME: Final = Metric(
    "pipeline.operation.time", "counter", "s", "Time in library calls.", (STAGE_NAME, OPERATION)
)
RETRIES: Final = Metric(
    "pipeline.retries", "counter", "{retry}", "Requests tried again.", (STAGE_NAME,)
)
RUN_ACTIVE: Final = Metric("pipeline.run.active", "gauge", "{run}", "Runs under way.")
LATENESS: Final = Metric(
    "pipeline.run.lateness", "gauge", "s", "Seconds past the deadline, while running and after."
)
LAST_START: Final = Metric(
    "pipeline.run.last_start.timestamp", "gauge", "s", "When the newest run started."
)
LAST_SUCCESS: Final = Metric(
    "pipeline.run.last_success.timestamp", "gauge", "s", "When a run last ended well."
)
LAST_END: Final = Metric("pipeline.run.last_end.timestamp", "gauge", "s", "When a run last ended.")
DEADLINE: Final = Metric(
    "pipeline.run.deadline.timestamp", "gauge", "s", "Deadline of the newest run that has one."
)
HEARTBEAT: Final = Metric(
    "pipeline.run.heartbeat.timestamp", "gauge", "s", "When the recorder last saw a run alive."
)
LAST_ACTIVITY: Final = Metric(
    "pipeline.run.last_activity.timestamp", "gauge", "s", "When a run last recorded anything."
)
PROGRESS: Final = Metric(
    "pipeline.run.progress",
    "gauge",
    "1",
    "Share of the expected records, else of the usual duration, that a run has behind it: 1 after "
    "a success, no longer sent after another end.",
)
ESTIMATED_END: Final = Metric(
    "pipeline.run.estimated_end.timestamp",
    "gauge",
    "s",
    "When the run under way will end, judged by past runs; only while one is.",
)
STAGE_CPU: Final = Metric(
    "pipeline.stage.cpu.time", "counter", "s", "CPU time while a stage ran.", (STAGE_NAME,)
)
STAGE_MEMORY: Final = Metric(
    "pipeline.stage.memory.peak",
    "gauge",
    "By",
    "Peak resident size up to the stage's end, last run.",
    (STAGE_NAME,),
)
NEWEST_EVENT: Final = Metric(
    "pipeline.dataset.newest_event.timestamp",
    "gauge",
    "s",
    "Newest event time seen in a declared dataset.",
    (DATASET,),
)
SPARK_SHUFFLE_READ: Final = Metric(
    "pipeline.spark.shuffle.read", "counter", "By", "Shuffle bytes read by Spark.", (STAGE_NAME,)
)
SPARK_SHUFFLE_WRITE: Final = Metric(
    "pipeline.spark.shuffle.write",
    "counter",
    "By",
    "Shuffle bytes written by Spark.",
    (STAGE_NAME,),
)
SPARK_SPILL: Final = Metric(
    "pipeline.spark.spill", "counter", "By", "Bytes that Spark spilled to disk.", (STAGE_NAME,)
)
SPARK_TASK_COUNT: Final = Metric(
    "pipeline.spark.tasks", "counter", "{task}", "Spark tasks that ended.", (STAGE_NAME,)
)
SPARK_TASK_FAILURES: Final = Metric(
    "pipeline.spark.task.failures", "counter", "{task}", "Spark tasks that failed.", (STAGE_NAME,)
)
SPARK_SKEW: Final = Metric(
    "pipeline.spark.task.skew",
    "gauge",
    "1",
    "Slowest task / median task, the worst Spark stage of the stage's last run.",
    (STAGE_NAME,),
)
SPARK_GC_RATIO: Final = Metric(
    "pipeline.spark.gc.ratio",
    "gauge",
    "1",
    "Share of the tasks' time that was garbage collection, the stage's last run.",
    (STAGE_NAME,),
)
SPARK_IDLE_SLOTS: Final = Metric(
    "pipeline.spark.slots.idle",
    "gauge",
    "1",
    "Share of the executors' slots that had no task while Spark jobs ran, the stage's last run.",
    (STAGE_NAME,),
)
SPARK_STREAM_INPUT_RATE: Final = Metric(
    "pipeline.spark.stream.input.rate",
    "gauge",
    "{record}/s",
    "Records per second that came in for the last batch.",
    (STAGE_NAME,),
)
SPARK_STREAM_PROCESSING_RATE: Final = Metric(
    "pipeline.spark.stream.processing.rate",
    "gauge",
    "{record}/s",
    "Records per second that the last batch processed.",
    (STAGE_NAME,),
)
SPARK_STREAM_BATCH_DURATION: Final = Metric(
    "pipeline.spark.stream.batch.duration", "gauge", "s", "Of the last batch.", (STAGE_NAME,)
)
SPARK_STREAM_TRIGGER_RATIO: Final = Metric(
    "pipeline.spark.stream.trigger.ratio",
    "gauge",
    "1",
    "Duration of the last batch / interval of the trigger: above 1 the query falls behind.",
    (STAGE_NAME,),
)
SPARK_STREAM_WATERMARK_LATENESS: Final = Metric(
    "pipeline.spark.stream.watermark.lateness",
    "gauge",
    "s",
    "How far the watermark is behind the clock.",
    (STAGE_NAME,),
)
SPARK_STREAM_SOURCE_LAG: Final = Metric(
    "pipeline.spark.stream.source.lag",
    "gauge",
    "{record}",
    "Offsets that the sources have beyond those of the last batch, where they are numbers.",
    (STAGE_NAME,),
)
SPARK_STREAM_STATE_ROWS: Final = Metric(
    "pipeline.spark.stream.state.rows", "gauge", "{row}", "Rows kept as state.", (STAGE_NAME,)
)
SPARK_STREAM_STATE_MEMORY: Final = Metric(
    "pipeline.spark.stream.state.memory", "gauge", "By", "Memory of the state.", (STAGE_NAME,)
)
SPARK_STREAM_ROWS_DROPPED: Final = Metric(
    "pipeline.spark.stream.rows.dropped",
    "counter",
    "{row}",
    "Rows that came later than the watermark allows, and were dropped.",
    (STAGE_NAME,),
)
INFO: Final = Metric("pipeline.info", "gauge", "1", "Always 1.", (OWNER, VERSION))
TELEMETRY_RECORDED: Final = Metric(
    "stagewatch.telemetry.recorded",
    "counter",
    "{item}",
    "Items taken in from journals.",
    (SIGNAL,),
)
TELEMETRY_SHIPPED: Final = Metric(
    "stagewatch.telemetry.shipped", "counter", "{item}", "Items the backend accepted.", (SIGNAL,)
)
TELEMETRY_DROPPED: Final = Metric(
    "stagewatch.telemetry.dropped",
    "counter",
    "{item}",
    "Items lost or cut, by reason.",
    (SIGNAL, REASON),
)
TELEMETRY_PENDING: Final = Metric(
    "stagewatch.telemetry.pending", "gauge", "{item}", "Items that wait to be sent.", (SIGNAL,)
)
OVERHEAD: Final = Metric(
    "stagewatch.overhead", "counter", "s", "CPU time of our start-up and exit inside jobs.", ()
)

UNWATCHED: Final = Metric(
    "stagewatch.unwatched",
    "counter",
    "s",
    "Time of runs under way that nobody watched: recorder and keeper were dead.",
    (),
)

METRICS: Final = tuple(value for value in dict(globals()).values() if isinstance(value, Metric))
"""All of them, in the order above."""

MEASURED: Final = {
    metric.name: metric for metric in METRICS if metric.name.startswith("pipeline.spark.")
}
"""Those that an engine's instrumentor measures itself."""
