package stagewatch;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.spark.SparkContext;
import org.apache.spark.executor.TaskMetrics;
import org.apache.spark.scheduler.*;
import org.apache.spark.sql.execution.ui.SparkListenerSQLAdaptiveExecutionUpdate;
import org.apache.spark.sql.execution.ui.SparkListenerSQLExecutionEnd;
import org.apache.spark.sql.execution.ui.SparkListenerSQLExecutionStart;

/**
 * What happens in Spark, as JSON objects that Python drains: the types of events.py.
 *
 * <p>Janino compiles this in the driver's JVM. It knows no generics, and does not find methods that
 * the compiler bridges (SQLMetric.value): those are called by reflection, as is whatever differs
 * between Spark 3.5 and 4.
 */
public class Listener extends SparkListener {
  /** Before a traceparent, in one of a job's tags: how Spark Connect's clients name their action. */
  private static final String TAG = "stagewatch-";

  private final String property;
  private final int capacity;
  private final ConcurrentLinkedQueue told = new ConcurrentLinkedQueue();
  private static final long MOST_TEXT = 32L << 20; // characters that wait for Python
  private final AtomicInteger waiting = new AtomicInteger();
  private final AtomicLong size = new AtomicLong();
  private final AtomicLong dropped = new AtomicLong();
  private final Object bell = new Object();
  private boolean woken;
  private SparkContext context;
  private String queue;

  // Of the listener's thread alone.
  private final Map tasks = new HashMap();
  private final Map planChanges = new HashMap();
  private final Set withJobs = new HashSet(); // executions under way
  private final Collection cached = new HashSet();
  private final Growth growth = new Growth();
  private Tasks last;

  /** @param property name of the local property that holds an action's traceparent
   *  @param capacity events kept for Python; those beyond are dropped and counted */
  public Listener(String property, int capacity) {
    this.property = property;
    this.capacity = capacity;
  }

  /** Hear of what happens in a context, in a queue of our own; begins with its executors. */
  public void attach(SparkContext context, String queue) {
    this.context = context;
    this.queue = queue;
    scala.collection.Iterator executors = context.statusStore().executorList(true).iterator();
    while (executors.hasNext()) {
      Object one = executors.next();
      Json json = new Json("executor_added");
      json.add("executor", String.valueOf(Reflected.call(one, "id")));
      json.add("at", System.currentTimeMillis());
      json.add("slots", ((Number) Reflected.call(one, "totalCores")).longValue());
      tell(json);
    }
    context.listenerBus().addToQueue(this, queue);
  }

  public void detach() {
    context.removeSparkListener(this);
  }

  // --- called around an action, on the JVM's thread of the calling Python thread ---------------

  /** Jobs that this thread submits belong to an action from now on.
   *  @return what the property was */
  public String enter(String traceparent) {
    String before = context.getLocalProperty(property);
    context.setLocalProperty(property, traceparent);
    context.listenerBus().post(new Mark(traceparent, true));
    return before;
  }

  /** The action is over; all that was posted until here is told before this is. */
  public void leave(String before, String traceparent) {
    context.setLocalProperty(property, before);
    context.listenerBus().post(new Mark(traceparent, false));
  }

  /** The same for an action that did not `enter`. */
  public void left(String traceparent) {
    context.listenerBus().post(new Mark(traceparent, false));
  }

  // --- called by the thread that drains ----------------------------------------------------------

  /** Waits for the first event, at most so many milliseconds.
   *  @return at most so many events, a JSON array */
  public String drain(int most, long wait) throws InterruptedException {
    if (wait > 0 && told.isEmpty()) {
      synchronized (bell) {
        if (told.isEmpty() && !woken) bell.wait(wait);
        woken = false;
      }
    }
    StringBuilder found = new StringBuilder("[");
    for (int i = 0; i < most; i++) {
      Object one = told.poll();
      if (one == null) break;
      waiting.decrementAndGet();
      size.addAndGet(-((String) one).length());
      if (i > 0) found.append(',');
      found.append((String) one);
    }
    return found.append(']').toString();
  }

  /** Let a drain that waits return, or the next one not wait. */
  public void wake() {
    synchronized (bell) {
      woken = true;
      bell.notifyAll();
    }
  }

  /** Events lost so far: here, and in Spark's queue in front of us. */
  public long dropped() {
    long found = dropped.get();
    try {
      Object metrics = Reflected.call(context.listenerBus(), "metrics");
      Object registry = Reflected.call(metrics, "metricRegistry");
      Map counters = (Map) Reflected.call(registry, "getCounters");
      Object counter = counters.get("queue." + queue + ".numDroppedEvents");
      if (counter != null) found += ((Number) Reflected.call(counter, "getCount")).longValue();
    } catch (Throwable unknown) {
      // Its name is Spark's own affair.
    }
    return found;
  }

  private void tell(Json json) {
    String text = json.end();
    if (waiting.get() >= capacity || size.get() >= MOST_TEXT) {
      dropped.incrementAndGet();
      return;
    }
    told.add(text);
    waiting.incrementAndGet();
    size.addAndGet(text.length());
    synchronized (bell) {
      bell.notifyAll();
    }
  }

  // --- jobs and stages -------------------------------------------------------------------------

  public void onJobStart(SparkListenerJobStart event) {
    Json json = new Json("job_started");
    json.add("job", event.jobId());
    json.add("at", event.time());
    ArrayList stages = new ArrayList();
    scala.collection.Iterator infos = event.stageInfos().iterator();
    while (infos.hasNext()) stages.add(new Long(((StageInfo) infos.next()).stageId()));
    json.raws("stages", stages);
    Properties properties = event.properties();
    if (properties != null) {
      json.add("context", contextOf(properties));
      json.number("execution", properties.getProperty("spark.sql.execution.id"));
      json.number("root", properties.getProperty("spark.sql.execution.root.id"));
      withJobs.add(String.valueOf(properties.getProperty("spark.sql.execution.id")));
      withJobs.add(String.valueOf(properties.getProperty("spark.sql.execution.root.id")));
      json.add("query", properties.getProperty("sql.streaming.queryId"));
      json.number("batch", properties.getProperty("streaming.sql.batchId"));
      json.add("call_site", properties.getProperty("callSite.short"));
    }
    tell(json);
  }

  private String contextOf(Properties properties) {
    String own = properties.getProperty(property);
    String tags = properties.getProperty("spark.job.tags");
    int at = own == null && tags != null ? tags.indexOf(TAG) : -1;
    if (at < 0) return own;
    int end = tags.indexOf(',', at);
    return tags.substring(at + TAG.length(), end < 0 ? tags.length() : end);
  }

  public void onJobEnd(SparkListenerJobEnd event) {
    Json json = new Json("job_ended");
    json.add("job", event.jobId());
    json.add("at", event.time());
    JobResult result = event.jobResult();
    if (result instanceof JobFailed) {
      Throwable cause = ((JobFailed) result).exception();
      json.add("error", cause.getClass().getName());
      json.thrown("message", cause.getMessage());
    }
    tell(json);
  }

  public void onStageSubmitted(SparkListenerStageSubmitted event) {
    StageInfo stage = event.stageInfo();
    tasks.put(key(stage.stageId(), stage.attemptNumber()), new Tasks(stage.stageId(), stage.attemptNumber()));
    Json json = new Json("stage_submitted");
    json.add("stage", stage.stageId());
    json.add("attempt", stage.attemptNumber());
    json.add("at", stage.submissionTime().isDefined()
        ? ((Long) stage.submissionTime().get()).longValue() : System.currentTimeMillis());
    json.add("name", stage.name());
    json.add("tasks", stage.numTasks());
    tell(json);
  }

  /** The one that is called for every task. */
  public void onTaskEnd(SparkListenerTaskEnd event) {
    Tasks stage = last;
    if (stage == null || stage.stage != event.stageId() || stage.attempt != event.stageAttemptId()) {
      stage = (Tasks) tasks.get(key(event.stageId(), event.stageAttemptId()));
      if (stage == null) return;
      last = stage;
    }
    TaskInfo task = event.taskInfo();
    TaskMetrics metrics = event.taskMetrics();
    if (task.successful()) {
      long read = metrics == null ? 0 : metrics.shuffleReadMetrics().totalBytesRead();
      stage.add((int) Math.min(task.duration(), Integer.MAX_VALUE), read, task.host());
    } else if (task.killed()) {
      stage.killed++;
    } else {
      stage.failed++;
      org.apache.spark.TaskEndReason reason = event.reason();
      if (reason instanceof org.apache.spark.ExceptionFailure) {
        org.apache.spark.ExceptionFailure failure = (org.apache.spark.ExceptionFailure) reason;
        stage.error = failure.className();
        stage.message = failure.description();
      } else {
        stage.error = reason.getClass().getSimpleName().replace("$", "");
        stage.message = reason.toString();
      }
    }
    if (metrics != null) stage.peak = Math.max(stage.peak, metrics.peakExecutionMemory());
  }

  public void onStageCompleted(SparkListenerStageCompleted event) {
    StageInfo stage = event.stageInfo();
    Tasks seen = (Tasks) tasks.remove(key(stage.stageId(), stage.attemptNumber()));
    if (seen == last) last = null;
    Json json = new Json("stage_completed");
    json.add("stage", stage.stageId());
    json.add("attempt", stage.attemptNumber());
    json.add("name", stage.name());
    json.add("tasks", stage.numTasks());
    if (stage.submissionTime().isDefined()) json.add("submitted", ((Long) stage.submissionTime().get()).longValue());
    if (stage.completionTime().isDefined()) json.add("completed", ((Long) stage.completionTime().get()).longValue());
    if (stage.failureReason().isDefined()) json.thrown("failure", (String) stage.failureReason().get());
    if (stage.taskMetrics() != null) addMetrics(json, stage.taskMetrics());
    if (readsCache(stage)) json.flag("cached");
    if (seen != null) seen.addTo(json);
    tell(json);
  }

  /** Whether an RDD of it had been persisted by a stage before. */
  private boolean readsCache(StageInfo stage) {
    boolean found = false;
    scala.collection.Iterator infos = stage.rddInfos().iterator();
    while (infos.hasNext()) {
      org.apache.spark.storage.RDDInfo one = (org.apache.spark.storage.RDDInfo) infos.next();
      if (one.storageLevel().isValid() && !cached.add(new Integer(one.id()))) found = true;
    }
    return found;
  }

  public void onUnpersistRDD(SparkListenerUnpersistRDD event) {
    cached.remove(new Integer(event.rddId()));
  }

  private static void addMetrics(Json json, TaskMetrics metrics) {
    json.add("input_bytes", metrics.inputMetrics().bytesRead());
    json.add("input_records", metrics.inputMetrics().recordsRead());
    json.add("output_bytes", metrics.outputMetrics().bytesWritten());
    json.add("output_records", metrics.outputMetrics().recordsWritten());
    json.add("shuffle_read_bytes", metrics.shuffleReadMetrics().totalBytesRead());
    json.add("shuffle_read_records", metrics.shuffleReadMetrics().recordsRead());
    json.add("shuffle_fetch_wait", metrics.shuffleReadMetrics().fetchWaitTime());
    json.add("shuffle_write_bytes", metrics.shuffleWriteMetrics().bytesWritten());
    json.add("shuffle_write_records", metrics.shuffleWriteMetrics().recordsWritten());
    json.add("spill_memory", metrics.memoryBytesSpilled());
    json.add("spill_disk", metrics.diskBytesSpilled());
    json.add("run_time", metrics.executorRunTime());
    json.add("cpu_time", metrics.executorCpuTime());
    json.add("gc_time", metrics.jvmGCTime());
    json.add("result_bytes", metrics.resultSize());
  }

  private static Long key(int stage, int attempt) {
    return new Long(((long) stage << 32) | attempt);
  }

  // --- executors -------------------------------------------------------------------------------

  public void onExecutorAdded(SparkListenerExecutorAdded event) {
    Json json = new Json("executor_added");
    json.add("executor", event.executorId());
    json.add("at", event.time());
    json.add("slots", event.executorInfo().totalCores());
    tell(json);
  }

  public void onExecutorRemoved(SparkListenerExecutorRemoved event) {
    Json json = new Json("executor_removed");
    json.add("executor", event.executorId());
    json.add("at", event.time());
    json.add("reason", event.reason());
    tell(json);
  }

  // --- SQL, streams and our own marks ----------------------------------------------------------

  public void onOtherEvent(SparkListenerEvent event) {
    if (event instanceof Mark) {
      Mark mark = (Mark) event;
      Json json = new Json(mark.begins ? "entered" : "marked");
      json.add("context", mark.traceparent);
      tell(json);
    } else if (event instanceof SparkListenerSQLExecutionStart) {
      SparkListenerSQLExecutionStart start = (SparkListenerSQLExecutionStart) event;
      Json json = new Json("execution_started");
      json.add("execution", start.executionId());
      json.add("at", start.time());
      if (start.rootExecutionId().isDefined()) json.add("root", ((Long) start.rootExecutionId().get()).longValue());
      tell(json);
    } else if (event instanceof SparkListenerSQLAdaptiveExecutionUpdate) {
      Long execution = new Long(((SparkListenerSQLAdaptiveExecutionUpdate) event).executionId());
      Integer before = (Integer) planChanges.get(execution);
      planChanges.put(execution, new Integer(before == null ? 1 : before.intValue() + 1));
    } else if (event instanceof SparkListenerSQLExecutionEnd) {
      executionEnded((SparkListenerSQLExecutionEnd) event);
    } else {
      stream(event);
    }
  }

  private void executionEnded(SparkListenerSQLExecutionEnd end) {
    Json json = new Json("execution_ended");
    json.add("execution", end.executionId());
    json.add("at", end.time());
    Integer changes = (Integer) planChanges.remove(new Long(end.executionId()));
    // The first update tells the plan as it is to begin with.
    if (changes != null) json.add("plan_changes", Math.max(0, changes.intValue() - 1));
    Object failure = Reflected.option(Reflected.call(end, "executionFailure"));
    if (failure != null) json.add("error", failure.getClass().getName());
    boolean ran = withJobs.remove(String.valueOf(end.executionId()));
    if (failure != null && !ran) {
      // Perhaps of its analysis: who asked for that again would stand in the stack trace of what
      // the user's thread is told.
      tell(json);
      return;
    }
    int whole = json.length();
    try {
      new Plan(json, growth).add(Reflected.call(end, "qe"), failure == null);
    } catch (Throwable fault) {
      json.cut(whole);
      json.add("fault", fault.toString());
    }
    tell(json);
  }

  private void stream(SparkListenerEvent event) {
    String name = event.getClass().getSimpleName();
    if (name.equals("QueryProgressEvent")) {
      Json json = new Json("query_progress");
      json.raw("progress", String.valueOf(Reflected.call(Reflected.call(event, "progress"), "json")));
      tell(json);
    } else if (name.equals("QueryStartedEvent") || name.equals("QueryTerminatedEvent")) {
      Json json = new Json(name.equals("QueryStartedEvent") ? "query_started" : "query_terminated");
      json.add("id", String.valueOf(Reflected.call(event, "id")));
      json.add("run", String.valueOf(Reflected.call(event, "runId")));
      Object given = Reflected.call(event, "name");
      if (given != null) json.add("name", given.toString());
      Object message = Reflected.option(Reflected.call(event, "exception"));
      if (message != null) json.thrown("message", message.toString());
      Object error = Reflected.option(Reflected.call(event, "errorClassOnException"));
      if (error != null) json.add("error", error.toString());
      tell(json);
    }
  }
}

/** Posted by us; never written to an event log. */
class Mark implements SparkListenerEvent {
  final String traceparent;
  final boolean begins;

  Mark(String traceparent, boolean begins) {
    this.traceparent = traceparent;
    this.begins = begins;
  }

  public boolean logEvent() {
    return false;
  }
}

/** The tasks of one attempt of a stage. */
class Tasks {
  private static final int MOST = 1 << 16; // the median of so many is that of all
  final int stage;
  final int attempt;
  private int[] durations = new int[16];
  private long[] reads = new long[16];
  private int kept;
  private int succeeded;
  private int longest;
  private long largest;
  private String slowestHost;
  int failed;
  int killed;
  long peak;
  String error;
  String message;

  Tasks(int stage, int attempt) {
    this.stage = stage;
    this.attempt = attempt;
  }

  void add(int duration, long read, String host) {
    succeeded++;
    if (duration > longest || slowestHost == null) {
      longest = duration;
      slowestHost = host;
    }
    largest = Math.max(largest, read);
    if (kept == MOST) return;
    if (kept == durations.length) {
      durations = Arrays.copyOf(durations, kept * 2);
      reads = Arrays.copyOf(reads, kept * 2);
    }
    durations[kept] = duration;
    reads[kept++] = read;
  }

  void addTo(Json json) {
    json.add("memory_peak", peak);
    json.add("failed", failed);
    json.add("killed", killed);
    json.add("error", error);
    json.thrown("message", message);
    json.add("succeeded", succeeded);
    if (kept == 0) return;
    Arrays.sort(durations, 0, kept);
    Arrays.sort(reads, 0, kept);
    json.add("task_median", durations[(kept - 1) / 2]);
    json.add("task_max", longest);
    json.add("slowest_host", slowestHost);
    json.add("read_median", reads[(kept - 1) / 2]);
    json.add("read_max", largest);
  }
}

/**
 * What a finished execution read and wrote, and its operators. Only fields of plans in memory are
 * looked at: inputFiles() or sizeInBytes() may list files or start jobs.
 */
class Plan {
  private static final int DEEPEST = 200;
  private static final int MOST = 500;
  private final Json json;
  private final Collection inputs = new LinkedHashSet();
  private final Collection outputs = new LinkedHashSet();
  private long fingerprint = 0xcbf29ce484222325L; // FNV-1a
  private final Growth growth;
  private int seen;
  private int inCache;

  Plan(Json json, Growth growth) {
    this.json = json;
    this.growth = growth;
  }

  /** @param planned whether it ran: else asking for its physical plan could make one */
  void add(Object execution, boolean planned) {
    if (execution == null) return;
    logical(Reflected.call(execution, "analyzed"), 0);
    json.raws("inputs", inputs);
    json.raws("outputs", outputs);
    json.add("fingerprint", Long.toHexString(fingerprint));
    if (!planned) return;
    seen = 0;
    Object physical = unwrapped(Reflected.call(execution, "executedPlan"));
    if (physical != null) {
      json.name("plan");
      physical(physical, 0);
    }
  }

  private void logical(Object plan, int depth) {
    if (plan == null || depth > DEEPEST || seen++ > MOST) return;
    String name = plan.getClass().getSimpleName();
    if (name.equals("CommandResult")) {
      logical(Reflected.call(plan, "commandLogicalPlan"), depth + 1);
      return;
    }
    stir(depth + name);
    String read = Relations.read(plan, name);
    if (read != null) inputs.add(read);
    String written = Relations.written(plan, name);
    if (written != null) outputs.add(written);
    // What it writes to stands among the children of a V2 write, what it reads from is its query.
    if (Relations.isV2Write(name)) {
      logical(Reflected.call(plan, "query"), depth + 1);
      return;
    }
    ArrayList below = new ArrayList();
    Reflected.into(Reflected.call(plan, "children"), below);
    Reflected.into(Reflected.call(plan, "innerChildren"), below);
    Reflected.into(Reflected.call(plan, "subqueries"), below);
    if (written != null && !below.contains(Reflected.call(plan, "query"))) below.add(Reflected.call(plan, "query"));
    for (int i = 0; i < below.size(); i++) {
      if (below.get(i) instanceof org.apache.spark.sql.catalyst.plans.logical.LogicalPlan) logical(below.get(i), depth + 1);
    }
  }

  private void stir(String text) {
    for (int i = 0; i < text.length(); i++) fingerprint = (fingerprint ^ text.charAt(i)) * 0x100000001b3L;
  }

  private void physical(Object plan, int depth) {
    seen++;
    String kind = plan.getClass().getSimpleName();
    json.open();
    // Of a scan by a connector it ends with that one's options, in brackets.
    json.add("name", String.valueOf(Reflected.call(plan, "nodeName")).split("\\(")[0].trim());
    boolean ran = metrics(Reflected.call(plan, "metrics"));
    String relation = ran || inCache == 0 ? Relations.ofOperator(plan, kind) : null;
    if (relation != null) json.raw("relation", relation);
    if (kind.equals("FileSourceScanExec")) {
      Object schema = Reflected.call(Reflected.call(plan, "relation"), "partitionSchema");
      Object names = Reflected.call(schema, "fieldNames");
      if (names instanceof String[]) json.texts("partitioned_by", Arrays.asList((String[]) names));
      ArrayList filters = new ArrayList();
      Reflected.into(Reflected.call(plan, "partitionFilters"), filters);
      json.add("partition_filters", filters.size());
    }
    ArrayList below = new ArrayList();
    if (!kind.startsWith("ReusedExchange")) {
      Reflected.into(Reflected.call(plan, "children"), below);
      Reflected.into(Reflected.call(plan, "subqueries"), below);
    }
    boolean fillsCache = kind.equals("InMemoryTableScanExec");
    if (fillsCache) {
      below.add(Reflected.call(Reflected.call(Reflected.call(plan, "relation"), "cacheBuilder"), "cachedPlan"));
      inCache++;
    }
    json.name("children");
    json.list();
    for (int i = 0; i < below.size() && depth < DEEPEST && seen < MOST; i++) {
      Object child = unwrapped(below.get(i));
      if (child != null) physical(child, depth + 1);
    }
    json.endList();
    json.close();
    if (fillsCache) inCache--;
  }

  /** Without what adaptive execution and commands put around an operator. */
  private static Object unwrapped(Object plan) {
    for (int i = 0; plan != null && i < 10; i++) {
      String kind = plan.getClass().getSimpleName();
      if (kind.equals("CommandResultExec")) plan = Reflected.call(plan, "commandPhysicalPlan");
      else if (kind.equals("AdaptiveSparkPlanExec")) plan = Reflected.call(plan, "executedPlan");
      else if (kind.endsWith("QueryStageExec")) plan = Reflected.call(plan, "plan");
      else if (kind.equals("ResultQueryStageExec")) plan = Reflected.call(plan, "plan");
      else if (kind.equals("WholeStageCodegenExec") || kind.equals("InputAdapter")) plan = Reflected.call(plan, "child");
      else if (kind.equals("SubqueryExec") || kind.equals("SubqueryBroadcastExec") || kind.equals("SubqueryAdaptiveBroadcastExec")) plan = Reflected.call(plan, "child");
      else return plan;
    }
    return plan;
  }

  /** @return whether there is one that is not 0 */
  private boolean metrics(Object metrics) {
    if (!(metrics instanceof scala.collection.Map)) return false;
    boolean found = false;
    json.name("metrics");
    json.open();
    scala.collection.Iterator all = ((scala.collection.Map) metrics).iterator();
    while (all.hasNext()) {
      scala.Tuple2 one = (scala.Tuple2) all.next();
      Object value = Reflected.call(one._2(), "value");
      if (!(value instanceof Long)) continue;
      long count = ((Long) value).longValue();
      if (inCache > 0) count = growth.of(Reflected.call(one._2(), "id"), count);
      if (count <= 0) continue;
      json.add((String) one._1(), count);
      found = true;
    }
    json.close();
    return found;
  }
}

/** What metrics of plans that fill a cache grew by: every execution that reads the cache shows them. */
class Growth {
  private static final int MOST = 20000;
  private final LinkedHashMap last = new LinkedHashMap(16, 0.75f, true); // the longest unseen first

  long of(Object metric, long value) {
    if (last.size() > MOST) last.remove(last.keySet().iterator().next());
    Object before = last.put(metric, new Long(value));
    return before == null ? value : value - ((Long) before).longValue();
  }
}

/** What plans read and write, each a JSON object: `Relation` of events.py. */
class Relations {
  static String read(Object plan, String name) {
    if (name.equals("LogicalRelation")) {
      Object table = Reflected.option(Reflected.call(plan, "catalogTable"));
      return table != null ? table(table) : base(Reflected.call(plan, "relation"));
    }
    if (name.equals("HiveTableRelation")) return table(Reflected.call(plan, "tableMeta"));
    if (name.startsWith("DataSourceV2") || name.startsWith("StreamingDataSourceV2")) return v2(Reflected.call(plan, "table"), Reflected.call(plan, "name"));
    return null;
  }

  static String written(Object plan, String name) {
    if (name.equals("InsertIntoHadoopFsRelationCommand")) {
      Object table = Reflected.option(Reflected.call(plan, "catalogTable"));
      return table != null ? table(table) : relation("files", "path", Reflected.call(plan, "outputPath"));
    }
    if (name.equals("InsertIntoHiveTable")) return table(Reflected.call(plan, "table"));
    if (name.startsWith("CreateDataSourceTableAsSelect") || name.startsWith("CreateHiveTableAsSelect")) {
      Object table = Reflected.call(plan, "table");
      return table(table != null ? table : Reflected.call(plan, "tableDesc"));
    }
    if (name.equals("SaveIntoDataSourceCommand")) return saved(Reflected.call(plan, "dataSource"), Reflected.call(plan, "options"));
    if (name.equals("CreateTableAsSelect") || name.equals("ReplaceTableAsSelect")) {
      return relation("table", "name", Reflected.call(plan, "tableName"));
    }
    if (isV2Write(name)) {
      Object target = Reflected.call(plan, "table");
      return v2(Reflected.call(target, "table"), Reflected.call(target, "name"));
    }
    return null;
  }

  static boolean isV2Write(String name) {
    return name.equals("AppendData") || name.startsWith("OverwriteByExpression")
        || name.startsWith("OverwritePartitionsDynamic") || name.equals("ReplaceData") || name.equals("WriteDelta");
  }

  static String ofOperator(Object plan, String kind) {
    if (kind.equals("FileSourceScanExec")) {
      Object table = Reflected.option(Reflected.call(plan, "tableIdentifier"));
      return table != null ? relation("table", "name", Reflected.call(table, "unquotedString")) : base(Reflected.call(plan, "relation"));
    }
    if (kind.equals("RowDataSourceScanExec")) return base(Reflected.call(plan, "relation"));
    if (kind.equals("BatchScanExec")) return v2(Reflected.call(plan, "table"), null);
    if (kind.equals("HiveTableScanExec")) return table(Reflected.call(Reflected.call(plan, "relation"), "tableMeta"));
    if (kind.equals("DataWritingCommandExec")) {
      Object command = Reflected.call(plan, "cmd");
      return command == null ? null : written(command, command.getClass().getSimpleName());
    }
    return null;
  }

  private static String table(Object table) {
    return relation("table", "name", Reflected.call(Reflected.call(table, "identifier"), "unquotedString"));
  }

  private static String base(Object relation) {
    if (relation == null) return null;
    Object location = Reflected.call(relation, "location");
    if (location != null) {
      ArrayList roots = new ArrayList();
      Reflected.into(Reflected.call(location, "rootPaths"), roots);
      return roots.isEmpty() ? null : relation("files", "path", roots.get(0));
    }
    Object options = Reflected.call(relation, "jdbcOptions");
    if (options != null) return jdbc(Reflected.call(options, "url"), Reflected.call(options, "tableOrQuery"));
    return relation("source", "name", relation.getClass().getSimpleName());
  }

  private static String relation(String type, String field, Object value) {
    if (value == null) return null;
    Json json = new Json(type);
    json.add(field, value.toString());
    return json.end();
  }

  private static String jdbc(Object url, Object table) {
    Json json = new Json("jdbc");
    json.add("url", String.valueOf(url));
    if (table != null) json.add("table", table.toString());
    return json.end();
  }

  private static String v2(Object table, Object name) {
    Object found = name != null ? name : Reflected.call(table, "name");
    if (table != null) {
      if (table.getClass().getName().contains(".noop.")) return null; // writes nothing anywhere
      ArrayList paths = new ArrayList();
      Reflected.into(Reflected.call(table, "paths"), paths);
      if (!paths.isEmpty()) return relation("files", "path", paths.get(0));
    }
    return relation("table", "name", found);
  }

  private static String saved(Object source, Object options) {
    if (options instanceof scala.collection.Map) {
      scala.collection.Map given = (scala.collection.Map) options;
      Object url = Reflected.option(given.get("url"));
      Object table = Reflected.option(given.get("dbtable"));
      if (url != null) return jdbc(url, table);
      Object path = Reflected.option(given.get("path"));
      if (path != null) return relation("files", "path", path);
    }
    return source == null ? null : relation("source", "name", source.getClass().getSimpleName());
  }
}

class Reflected {
  private static final int MOST = 5000;
  private static final Map methods = new ConcurrentHashMap();
  private static final Object ABSENT = new Object(); // looked for in vain: that costs most

  /** What a method without arguments returns; null if there is none, or it fails. */
  static Object call(Object target, String name) {
    if (target == null) return null;
    try {
      Object method = method(target.getClass(), name);
      return method == ABSENT ? null : ((java.lang.reflect.Method) method).invoke(target, new Object[0]);
    } catch (Throwable fault) {
      return null;
    }
  }

  private static Object method(Class type, String name) {
    Map named = (Map) methods.get(type);
    if (named == null) {
      if (methods.size() > MOST) methods.clear();
      named = new ConcurrentHashMap();
      methods.put(type, named);
    }
    Object method = named.get(name);
    if (method == null) {
      try {
        method = type.getMethod(name, new Class[0]);
      } catch (Throwable absent) {
        method = ABSENT;
      }
      named.put(name, method);
    }
    return method;
  }

  static Object option(Object option) {
    return option instanceof scala.Option && ((scala.Option) option).isDefined() ? ((scala.Option) option).get() : null;
  }

  static void into(Object sequence, Collection found) {
    if (!(sequence instanceof scala.collection.Iterable)) return;
    scala.collection.Iterator all = ((scala.collection.Iterable) sequence).iterator();
    while (all.hasNext()) found.add(all.next());
  }
}

/** One JSON object, written from left to right. */
class Json {
  private static final int LONGEST = 2000;
  private static final int LONGEST_THROWN = 20000;
  private final StringBuilder text = new StringBuilder(256);

  Json(String type) {
    text.append("{\"type\":\"").append(type).append('"');
  }

  void add(String name, long value) {
    name(name);
    text.append(value);
  }

  void add(String name, String value) {
    if (value == null) return;
    name(name);
    quote(value, LONGEST);
  }

  /** What was thrown: of Python, the exception is the last line of a traceback. */
  void thrown(String name, String value) {
    if (value == null) return;
    name(name);
    quote(value, LONGEST_THROWN);
  }

  void flag(String name) {
    name(name);
    text.append("true");
  }

  /** A number that Spark keeps as text; left out where it is none. */
  void number(String name, String value) {
    if (value == null) return;
    try {
      add(name, Long.parseLong(value));
    } catch (NumberFormatException none) {
      return;
    }
  }

  void raw(String name, String value) {
    name(name);
    text.append(value);
  }

  void texts(String name, Collection values) {
    name(name);
    list();
    for (Iterator all = values.iterator(); all.hasNext();) {
      comma();
      quote(String.valueOf(all.next()), LONGEST);
    }
    endList();
  }

  /** Numbers, or objects that are JSON already. */
  void raws(String name, Collection values) {
    name(name);
    text.append(values.toString());
  }

  void name(String name) {
    comma();
    quote(name, LONGEST);
    text.append(':');
  }

  void open() {
    comma();
    text.append('{');
  }

  void close() {
    text.append('}');
  }

  void list() {
    text.append('[');
  }

  void endList() {
    text.append(']');
  }

  int length() {
    return text.length();
  }

  void cut(int length) {
    text.setLength(length);
  }

  String end() {
    return text.append('}').toString();
  }

  private void comma() {
    char last = text.charAt(text.length() - 1);
    if (last != '{' && last != '[' && last != ':') text.append(',');
  }

  private void quote(String value, int longest) {
    text.append('"');
    int length = Math.min(value.length(), longest);
    for (int i = 0; i < length; i++) {
      char c = value.charAt(i);
      if (c == '"' || c == '\\') text.append('\\').append(c);
      else if (c < 0x20) text.append("\\u").append(Integer.toHexString(0x10000 | c).substring(1));
      else if (!Character.isSurrogate(c)) text.append(c);
      else if (Character.isHighSurrogate(c) && i + 1 < length && Character.isLowSurrogate(value.charAt(i + 1))) {
        text.append(c).append(value.charAt(++i));
      } else text.append('?');
    }
    text.append('"');
  }
}
