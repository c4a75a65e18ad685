//! The server's own best way, without the engine: a call to get work, and one to commit. From Rust,
//! through the generated clients, and from Python, on a worker of its client.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tonic::transport::Channel;
use wfe_persistence_client::v1;
use wfe_persistence_client::v1::commit_workflow_request::State;
use wfe_persistence_client::v1::queue_service_client::QueueServiceClient;
use wfe_persistence_client::v1::workflow_service_client::WorkflowServiceClient;

use super::Ended;

/// `python -m benchmarks.own_way`, which ends with this process, or if this is dropped.
pub struct Python {
    process: Child,
    pipes: Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

impl Python {
    pub fn start(target: &str) -> Self {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut process = Command::new(root.join(".venv/bin/python"))
            .args(["-m", "benchmarks.own_way", target])
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`./run bench` makes the environment");
        let stdin = process.stdin.take().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        Self {
            process,
            pipes: Mutex::new((stdin, stdout)),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id().expect("it runs")
    }

    pub async fn run(&self, steps: usize, at_once: usize, time: Duration) -> Ended {
        let mut pipes = self.pipes.lock().await;
        let run = json!({"steps": steps, "at_once": at_once, "seconds": time.as_secs_f64()});
        pipes
            .0
            .write_all(format!("{run}\n").as_bytes())
            .await
            .unwrap();
        let line = pipes.1.next_line().await.unwrap().expect("it runs");
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        let between = answer["between"].as_array().unwrap();
        Ended {
            workflows: answer["workflows"].as_u64().unwrap() as usize,
            between_ms: between.iter().map(|ms| ms.as_f64().unwrap()).collect(),
        }
    }
}

/// Workers that each get a workflow, commit a step, and are told with the next one; it stays theirs
/// until its last step.
pub async fn run(channel: &Channel, steps: usize, at_once: usize, time: Duration) -> Ended {
    let begun = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..at_once {
        let channel = channel.clone();
        let queue = format!("own-{steps}-{worker}");
        workers.spawn(async move {
            let mut workflows = WorkflowServiceClient::new(channel.clone());
            let mut queues = QueueServiceClient::new(channel);
            let mut ended = Ended::default();
            while begun.elapsed() < time {
                let id = uuid::Uuid::new_v4().to_string();
                create(&mut workflows, &queue, &id).await;
                let mut last = None;
                for step in 0..steps {
                    let item = take(&mut queues, &queue).await;
                    let now = Instant::now();
                    ended.between(last.replace(now), now);
                    let is_last = step + 1 == steps;
                    let request = commit(&queue, item, step, is_last);
                    workflows.commit_workflow(request).await.unwrap();
                }
                ended.workflows += 1;
            }
            ended
        });
    }
    let mut all = Ended::default();
    for ended in workers.join_all().await {
        all.workflows += ended.workflows;
        all.between_ms.extend(ended.between_ms);
    }
    all
}

async fn create(workflows: &mut WorkflowServiceClient<Channel>, queue: &str, id: &str) {
    let instance = v1::WorkflowInstance {
        id: id.into(),
        workflow_definition_id: super::DEFINITION.into(),
        version: 1,
        data_json: "{}".into(),
        status: v1::WorkflowStatus::Runnable.into(),
        execution_pointers: vec![pointer(0, true)],
        create_time: Some(std::time::SystemTime::now().into()),
        next_execution: Some(0),
        ..Default::default()
    };
    let request = v1::CreateNewWorkflowRequest {
        instance: Some(instance),
        enqueue: vec![item(queue)],
        ..Default::default()
    };
    workflows.create_new_workflow(request).await.unwrap();
}

async fn take(queues: &mut QueueServiceClient<Channel>, queue: &str) -> v1::DequeuedItem {
    let request = v1::DequeueRequest {
        queues: vec![queue.into()],
        max_items: 1,
        worker_id: "compare".into(),
        lease_duration: Some(seconds(30)),
        wait: Some(seconds(10)),
        include_workflow: true,
        ..Default::default()
    };
    let answer = queues.dequeue(request).await.unwrap().into_inner();
    answer.items.into_iter().next().expect("it is there")
}

fn commit(
    queue: &str,
    item_: v1::DequeuedItem,
    step: usize,
    is_last: bool,
) -> v1::CommitWorkflowRequest {
    let workflow = item_.workflow.expect("it fits");
    let mut pointers = vec![pointer(step, false)];
    if !is_last {
        pointers.push(pointer(step + 1, true));
    }
    let status = match is_last {
        true => v1::WorkflowStatus::Complete,
        false => v1::WorkflowStatus::Runnable,
    };
    let patch = v1::WorkflowPatch {
        id: workflow.id,
        header: Some(v1::WorkflowInstance {
            status: status.into(),
            ..Default::default()
        }),
        header_mask: Some(prost_types::FieldMask {
            paths: vec!["status".into()],
        }),
        execution_pointers: pointers,
        ..Default::default()
    };
    v1::CommitWorkflowRequest {
        state: Some(State::Patch(patch)),
        expected_revision: Some(workflow.revision),
        acknowledge: vec![v1::Acknowledgement {
            receipt: item_.receipt,
            confirmed: false,
        }],
        enqueue: (!is_last).then(|| item(queue)).into_iter().collect(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    }
}

fn pointer(step: usize, active: bool) -> v1::ExecutionPointer {
    let status = match active {
        true => v1::PointerStatus::Pending,
        false => v1::PointerStatus::Complete,
    };
    v1::ExecutionPointer {
        id: format!("pointer {step}"),
        step_id: step as i64,
        active,
        status: status.into(),
        step_name: Some(format!("step {step}")),
        ..Default::default()
    }
}

fn item(queue: &str) -> v1::QueueItem {
    v1::QueueItem {
        queue: queue.into(),
        ..Default::default()
    }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}
