//! The workflows of the fleet, and their steps. Each step puts into the workflow's data, under its
//! name, which execution of it was stored, so that the data tells its history.

use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use serde_json::{json, Value};
use wfe::models::{ErrorBehavior, ExecutionResult, StepOutcome, WorkflowDefinition, WorkflowStep};
use wfe::traits::step::{StepBody, StepExecutionContext};
use wfe::{Result, WfeError, WorkflowHost};
use wfe_core::primitives::sequence::SequenceStep;
use wfe_core::primitives::sub_workflow::SubWorkflowStep;

use crate::journal::Execution;

/// The name of the events that workflows of `events` wait for; the key is the workflow's id.
pub const EVENT: &str = "gate";

/// Works for up to `ms`, and fails: never, the first time (`"fail": "once"`) or always.
#[derive(Default)]
struct Work;

#[async_trait]
impl StepBody for Work {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> Result<ExecutionResult> {
        let execution = Execution::begin(name(context), context);
        let ms = config(context, "ms").and_then(Value::as_u64).unwrap_or(0);
        // Not even a sleep of nothing, which takes a millisecond.
        if ms > 0 {
            let ms = execution.id.as_u128() as u64 % (ms + 1);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let fails = match config(context, "fail").and_then(Value::as_str) {
            Some("once") => context.execution_pointer.retry_count == 0,
            Some(_) => true,
            None => false,
        };
        if fails {
            return Err(WfeError::StepExecution("as it was told to".into()));
        }
        if context.step.outcomes.is_empty() {
            ended::count();
        }
        Ok(done(context, &execution))
    }
}

/// How many executions of last steps have ended in this process.
pub mod ended {
    use std::sync::OnceLock;
    use tokio::sync::watch;

    static ENDED: OnceLock<watch::Sender<usize>> = OnceLock::new();

    fn sender() -> &'static watch::Sender<usize> {
        ENDED.get_or_init(|| watch::Sender::new(0))
    }

    pub(super) fn count() {
        sender().send_modify(|ended| *ended += 1);
    }

    pub async fn wait_for(number: usize) {
        let mut receiver = sender().subscribe();
        let reached = receiver.wait_for(|ended| *ended >= number).await;
        reached.expect("the sender is static");
    }
}

/// Waits for an event for this workflow.
#[derive(Default)]
struct Gate;

#[async_trait]
impl StepBody for Gate {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> Result<ExecutionResult> {
        let execution = Execution::begin(name(context), context);
        if context.execution_pointer.event_published {
            return Ok(done(context, &execution));
        }
        let key = context.workflow.id.as_str();
        Ok(ExecutionResult::wait_for_event(EVENT, key, Utc::now()))
    }
}

/// Sleeps for up to `ms`, in the engine's way. (The engine's own `DelayStep` sleeps again whenever
/// it wakes up.)
#[derive(Default)]
struct Nap;

#[async_trait]
impl StepBody for Nap {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> Result<ExecutionResult> {
        let execution = Execution::begin(name(context), context);
        if context.persistence_data.is_some() {
            return Ok(done(context, &execution));
        }
        let ms = config(context, "ms").and_then(Value::as_u64).unwrap_or(0);
        let ms = execution.id.as_u128() as u64 % (ms + 1);
        Ok(ExecutionResult::sleep(
            Duration::from_millis(ms),
            Some(json!(true)),
        ))
    }
}

fn config<'a>(context: &StepExecutionContext<'a>, name: &str) -> Option<&'a Value> {
    context.step.step_config.as_ref()?.get(name)
}

fn name<'a>(context: &StepExecutionContext<'a>) -> &'a str {
    context.step.name.as_deref().unwrap_or_default()
}

fn done(context: &StepExecutionContext<'_>, execution: &Execution) -> ExecutionResult {
    let mut result = ExecutionResult::next();
    result.output_data = Some(json!({ name(context): execution.id }));
    result
}

/// Step `id`, which is followed by `next`.
fn step<S: StepBody>(id: usize, name: &str, config: Value, next: Option<usize>) -> WorkflowStep {
    let mut step = WorkflowStep::new(id, std::any::type_name::<S>());
    step.name = Some(name.into());
    step.step_config = Some(config);
    step.outcomes.extend(next.map(|next_step| StepOutcome {
        next_step,
        label: None,
        value: None,
    }));
    step
}

/// `count` steps, one after the other.
pub fn linear(id: &str, count: usize, ms: usize) -> WorkflowDefinition {
    let next = |step| (step + 1 < count).then_some(step + 1);
    let steps = (0..count)
        .map(|id| step::<Work>(id, &format!("step{id}"), json!({ "ms": ms }), next(id)))
        .collect();
    definition(id, steps)
}

fn definition(id: &str, steps: Vec<WorkflowStep>) -> WorkflowDefinition {
    let mut definition = WorkflowDefinition::new(id, 1);
    definition.steps = steps;
    definition
}

/// All that the fleet runs. The names of steps are what the driver expects in a workflow's data.
pub fn all(ms: usize) -> Vec<WorkflowDefinition> {
    let work = json!({ "ms": ms });
    let mut together = step::<SequenceStep>(1, "together", json!({}), Some(5));
    together.children = vec![2, 3, 4];

    let retry = ErrorBehavior::Retry {
        interval: Duration::from_millis(100),
        max_retries: 5,
    };
    let mut flaky = step::<Work>(1, "flaky", json!({"ms": ms, "fail": "once"}), Some(2));
    flaky.error_behavior = Some(retry);
    let mut charge = step::<Work>(2, "charge", json!({"ms": ms, "fail": "always"}), None);
    charge.error_behavior = Some(ErrorBehavior::Compensate);
    charge.compensation_step_id = Some(3);

    let child = json!({"workflow_id": "child", "version": 1, "output_keys": ["child0"]});
    vec![
        linear("linear", 5, ms),
        definition(
            "parallel",
            vec![
                step::<Work>(0, "before", work.clone(), Some(1)),
                together,
                step::<Work>(2, "left", work.clone(), None),
                step::<Work>(3, "middle", work.clone(), None),
                step::<Work>(4, "right", work.clone(), None),
                step::<Work>(5, "after", work.clone(), None),
            ],
        ),
        definition(
            "events",
            vec![
                step::<Work>(0, "before", work.clone(), Some(1)),
                step::<Gate>(1, "gate", json!({}), Some(2)),
                step::<Work>(2, "after", work.clone(), None),
            ],
        ),
        definition(
            "delays",
            vec![
                step::<Work>(0, "before", work.clone(), Some(1)),
                step::<Nap>(1, "nap", json!({"ms": 2000}), Some(2)),
                step::<Work>(2, "after", work.clone(), None),
            ],
        ),
        definition(
            "saga",
            vec![
                step::<Work>(0, "reserve", work.clone(), Some(1)),
                flaky,
                charge,
                step::<Work>(3, "refund", work.clone(), None),
            ],
        ),
        definition(
            "sub",
            vec![
                step::<Work>(0, "before", work.clone(), Some(1)),
                step::<SubWorkflowStep>(1, "child", child, Some(2)),
                step::<Work>(2, "after", work, None),
            ],
        ),
        // Done at once, maybe before its parent has stored that it waits for it.
        definition("child", vec![step::<Work>(0, "child0", json!({}), None)]),
    ]
}

/// Registers definitions, and the steps that they are made of.
pub async fn register(host: &WorkflowHost, definitions: Vec<WorkflowDefinition>) {
    host.register_step::<Work>().await;
    host.register_step::<Gate>().await;
    host.register_step::<Nap>().await;
    for definition in definitions {
        host.register_workflow_definition(definition).await;
    }
}
