//! Between the engine's model and the messages of the API: nothing lost, nothing guessed.

use std::collections::HashMap;
use std::io;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::Value;
use tonic::Code;
use wfe_core::models as engine;

use crate::error::Error;
use crate::v1;

type Result<T> = std::result::Result<T, Error>;

/// A workflow to send.
pub(crate) fn to_workflow(instance: &engine::WorkflowInstance) -> Result<v1::WorkflowInstance> {
    Ok(v1::WorkflowInstance {
        id: instance.id.clone(),
        name: instance.name.clone(),
        root_workflow_id: instance.root_workflow_id.clone(),
        workflow_definition_id: instance.workflow_definition_id.clone(),
        version: instance.version,
        description: instance.description.clone(),
        reference: instance.reference.clone(),
        execution_pointers: instance
            .execution_pointers
            .iter()
            .map(to_pointer)
            .collect::<Result<_>>()?,
        next_execution: instance.next_execution,
        status: match instance.status {
            engine::WorkflowStatus::Runnable => v1::WorkflowStatus::Runnable,
            engine::WorkflowStatus::Suspended => v1::WorkflowStatus::Suspended,
            engine::WorkflowStatus::Complete => v1::WorkflowStatus::Complete,
            engine::WorkflowStatus::Terminated => v1::WorkflowStatus::Terminated,
        }
        .into(),
        data_json: to_json(&instance.data),
        create_time: Some(to_time(instance.create_time)),
        complete_time: instance.complete_time.map(to_time),
        ..Default::default()
    })
}

/// A workflow that was answered.
pub(crate) fn from_workflow(message: v1::WorkflowInstance) -> Result<engine::WorkflowInstance> {
    use v1::WorkflowStatus as Status;
    Ok(engine::WorkflowInstance {
        status: match message.status() {
            Status::Runnable => engine::WorkflowStatus::Runnable,
            Status::Suspended => engine::WorkflowStatus::Suspended,
            Status::Complete => engine::WorkflowStatus::Complete,
            Status::Terminated => engine::WorkflowStatus::Terminated,
            Status::Unspecified => return Err(unknown("workflow status", message.status)),
        },
        id: message.id,
        name: message.name,
        root_workflow_id: message.root_workflow_id,
        workflow_definition_id: message.workflow_definition_id,
        version: message.version,
        description: message.description,
        reference: message.reference,
        execution_pointers: message
            .execution_pointers
            .into_iter()
            .map(from_pointer)
            .collect::<Result<_>>()?,
        next_execution: message.next_execution,
        data: from_json(&message.data_json)?,
        create_time: from_required_time(message.create_time)?,
        complete_time: from_time(message.complete_time)?,
    })
}

fn to_pointer(pointer: &engine::ExecutionPointer) -> Result<v1::ExecutionPointer> {
    use engine::PointerStatus as Status;
    Ok(v1::ExecutionPointer {
        id: pointer.id.clone(),
        step_id: to_step_id(pointer.step_id)?,
        active: pointer.active,
        status: match pointer.status {
            Status::Pending => v1::PointerStatus::Pending,
            Status::Running => v1::PointerStatus::Running,
            Status::Complete => v1::PointerStatus::Complete,
            Status::Skipped => v1::PointerStatus::Skipped,
            Status::Sleeping => v1::PointerStatus::Sleeping,
            Status::WaitingForEvent => v1::PointerStatus::WaitingForEvent,
            Status::Failed => v1::PointerStatus::Failed,
            Status::Compensated => v1::PointerStatus::Compensated,
            Status::Cancelled => v1::PointerStatus::Cancelled,
            Status::PendingPredecessor => v1::PointerStatus::PendingPredecessor,
        }
        .into(),
        sleep_until: pointer.sleep_until.map(to_time),
        persistence_data_json: pointer.persistence_data.as_ref().map(to_json),
        start_time: pointer.start_time.map(to_time),
        end_time: pointer.end_time.map(to_time),
        event_name: pointer.event_name.clone(),
        event_key: pointer.event_key.clone(),
        event_published: pointer.event_published,
        event_data_json: pointer.event_data.as_ref().map(to_json),
        step_name: pointer.step_name.clone(),
        retry_count: pointer.retry_count,
        children: pointer.children.clone(),
        context_item_json: pointer.context_item.as_ref().map(to_json),
        predecessor_id: pointer.predecessor_id.clone(),
        outcome_json: pointer.outcome.as_ref().map(to_json),
        scope: pointer.scope.clone(),
        extension_attributes_json: pointer
            .extension_attributes
            .iter()
            .map(|(name, value)| (name.clone(), to_json(value)))
            .collect(),
    })
}

fn from_pointer(message: v1::ExecutionPointer) -> Result<engine::ExecutionPointer> {
    use v1::PointerStatus as Status;
    Ok(engine::ExecutionPointer {
        step_id: from_step_id(message.step_id)?,
        status: match message.status() {
            Status::Pending => engine::PointerStatus::Pending,
            Status::Running => engine::PointerStatus::Running,
            Status::Complete => engine::PointerStatus::Complete,
            Status::Skipped => engine::PointerStatus::Skipped,
            Status::Sleeping => engine::PointerStatus::Sleeping,
            Status::WaitingForEvent => engine::PointerStatus::WaitingForEvent,
            Status::Failed => engine::PointerStatus::Failed,
            Status::Compensated => engine::PointerStatus::Compensated,
            Status::Cancelled => engine::PointerStatus::Cancelled,
            Status::PendingPredecessor => engine::PointerStatus::PendingPredecessor,
            Status::Unspecified => return Err(unknown("pointer status", message.status)),
        },
        id: message.id,
        active: message.active,
        sleep_until: from_time(message.sleep_until)?,
        persistence_data: from_optional_json(message.persistence_data_json)?,
        start_time: from_time(message.start_time)?,
        end_time: from_time(message.end_time)?,
        event_name: message.event_name,
        event_key: message.event_key,
        event_published: message.event_published,
        event_data: from_optional_json(message.event_data_json)?,
        step_name: message.step_name,
        retry_count: message.retry_count,
        children: message.children,
        context_item: from_optional_json(message.context_item_json)?,
        predecessor_id: message.predecessor_id,
        outcome: from_optional_json(message.outcome_json)?,
        scope: message.scope,
        extension_attributes: message
            .extension_attributes_json
            .into_iter()
            .map(|(name, value)| Ok((name, from_json(&value)?)))
            .collect::<Result<HashMap<_, _>>>()?,
    })
}

/// An event to send.
pub(crate) fn to_event(event: &engine::Event) -> v1::Event {
    v1::Event {
        id: event.id.clone(),
        event_name: event.event_name.clone(),
        event_key: event.event_key.clone(),
        event_data_json: to_json(&event.event_data),
        event_time: Some(to_time(event.event_time)),
        is_processed: event.is_processed,
    }
}

/// An event that was answered.
pub(crate) fn from_event(message: v1::Event) -> Result<engine::Event> {
    Ok(engine::Event {
        id: message.id,
        event_name: message.event_name,
        event_key: message.event_key,
        event_data: from_json(&message.event_data_json)?,
        event_time: from_required_time(message.event_time)?,
        is_processed: message.is_processed,
    })
}

/// A subscription to send.
pub(crate) fn to_subscription(
    subscription: &engine::EventSubscription,
) -> Result<v1::EventSubscription> {
    Ok(v1::EventSubscription {
        id: subscription.id.clone(),
        workflow_id: subscription.workflow_id.clone(),
        step_id: to_step_id(subscription.step_id)?,
        execution_pointer_id: subscription.execution_pointer_id.clone(),
        event_name: subscription.event_name.clone(),
        event_key: subscription.event_key.clone(),
        subscribe_as_of: Some(to_time(subscription.subscribe_as_of)),
        subscription_data_json: subscription.subscription_data.as_ref().map(to_json),
        external_token: subscription.external_token.clone(),
        external_worker_id: subscription.external_worker_id.clone(),
        external_token_expiry: subscription.external_token_expiry.map(to_time),
        ..Default::default()
    })
}

/// A subscription that was answered.
pub(crate) fn from_subscription(
    message: v1::EventSubscription,
) -> Result<engine::EventSubscription> {
    Ok(engine::EventSubscription {
        id: message.id,
        workflow_id: message.workflow_id,
        step_id: from_step_id(message.step_id)?,
        execution_pointer_id: message.execution_pointer_id,
        event_name: message.event_name,
        event_key: message.event_key,
        subscribe_as_of: from_required_time(message.subscribe_as_of)?,
        subscription_data: from_optional_json(message.subscription_data_json)?,
        external_token: message.external_token,
        external_worker_id: message.external_worker_id,
        external_token_expiry: from_time(message.external_token_expiry)?,
    })
}

/// A command to send.
pub(crate) fn to_command(command: &engine::ScheduledCommand) -> v1::ScheduledCommand {
    v1::ScheduledCommand {
        command_name: match command.command_name {
            engine::CommandName::ProcessWorkflow => v1::CommandName::ProcessWorkflow,
            engine::CommandName::ProcessEvent => v1::CommandName::ProcessEvent,
        }
        .into(),
        data: command.data.clone(),
        execute_time: command.execute_time,
    }
}

/// A command that was answered.
pub(crate) fn from_command(message: v1::ScheduledCommand) -> Result<engine::ScheduledCommand> {
    Ok(engine::ScheduledCommand {
        command_name: match message.command_name() {
            v1::CommandName::ProcessWorkflow => engine::CommandName::ProcessWorkflow,
            v1::CommandName::ProcessEvent => engine::CommandName::ProcessEvent,
            v1::CommandName::Unspecified => {
                return Err(unknown("command name", message.command_name))
            }
        },
        data: message.data,
        execute_time: message.execute_time,
    })
}

/// A logged error to send.
pub(crate) fn to_execution_error(error: &engine::ExecutionError) -> v1::ExecutionError {
    v1::ExecutionError {
        error_time: Some(to_time(error.error_time)),
        workflow_id: error.workflow_id.clone(),
        execution_pointer_id: error.execution_pointer_id.clone(),
        message: error.message.clone(),
    }
}

/// A logged error that was answered.
pub(crate) fn from_execution_error(message: v1::ExecutionError) -> Result<engine::ExecutionError> {
    Ok(engine::ExecutionError {
        error_time: from_required_time(message.error_time)?,
        workflow_id: message.workflow_id,
        execution_pointer_id: message.execution_pointer_id,
        message: message.message,
    })
}

/// A time to send, with all its nanoseconds; the store truncates it to microseconds.
pub(crate) fn to_time(time: DateTime<Utc>) -> Timestamp {
    // Within a leap second chrono counts on beyond a billion, which protobuf does not.
    let nanos = time.timestamp_subsec_nanos();
    Timestamp {
        seconds: time.timestamp() + i64::from(nanos / 1_000_000_000),
        nanos: (nanos % 1_000_000_000) as i32,
    }
}

fn from_time(message: Option<Timestamp>) -> Result<Option<DateTime<Utc>>> {
    message
        .map(|message| {
            u32::try_from(message.nanos)
                .ok()
                .and_then(|nanos| DateTime::from_timestamp(message.seconds, nanos))
                .ok_or_else(|| bad_answer("a time that is none"))
        })
        .transpose()
}

fn from_required_time(message: Option<Timestamp>) -> Result<DateTime<Utc>> {
    from_time(message)?.ok_or_else(|| bad_answer("no time where there must be one"))
}

fn to_step_id(step_id: usize) -> Result<i64> {
    i64::try_from(step_id).map_err(|_| {
        Error::local(
            Code::InvalidArgument,
            format!("step id {step_id} is too large"),
        )
    })
}

fn from_step_id(step_id: i64) -> Result<usize> {
    usize::try_from(step_id).map_err(|_| bad_answer(&format!("step id {step_id}")))
}

/// A JSON document as text.
fn to_json(value: &Value) -> String {
    let mut text = Vec::with_capacity(64);
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut text, KeepFloats,
        ))
        .expect("a value has only text as keys, and memory does not fail");
    String::from_utf8(text).expect("JSON is UTF-8")
}

fn from_json(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| bad_answer(&format!("no JSON: {error}")))
}

fn from_optional_json(text: Option<String>) -> Result<Option<Value>> {
    text.as_deref().map(from_json).transpose()
}

fn unknown(what: &str, number: i32) -> Error {
    bad_answer(&format!("{what} {number}, unknown to this version"))
}

fn bad_answer(what: &str) -> Error {
    Error::local(Code::Internal, format!("the server answered {what}"))
}

/// Compact JSON in which floats stay floats in `jsonb`: that expands `1e16` to an
/// integer, and so it would come back as one.
struct KeepFloats;

impl Formatter for KeepFloats {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        if value.abs() < 1e15 {
            CompactFormatter.write_f64(writer, value)
        } else {
            write!(writer, "{value:.1}")
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use serde_json::json;

    use super::*;

    /// A workflow with every field set, as the engine's serde makes it, to compare by.
    fn workflow() -> engine::WorkflowInstance {
        let mut pointer = engine::ExecutionPointer::new(3);
        let time = Utc.timestamp_opt(1_700_000_000, 123_456_789).unwrap();
        pointer.active = false;
        pointer.status = engine::PointerStatus::WaitingForEvent;
        pointer.sleep_until = Some(time);
        pointer.persistence_data = Some(json!({"a": [1, null]}));
        pointer.start_time = Some(time);
        pointer.end_time = Some(time);
        pointer.event_name = Some(String::new());
        pointer.event_key = Some("k".into());
        pointer.event_published = true;
        pointer.event_data = Some(Value::Null);
        pointer.step_name = Some("s".into());
        pointer.retry_count = 7;
        pointer.children = vec!["b".into(), "a".into()];
        pointer.context_item = Some(json!("item"));
        pointer.predecessor_id = Some("p".into());
        pointer.outcome = Some(json!(false));
        pointer.scope = vec!["z".into(), "y".into()];
        pointer
            .extension_attributes
            .insert("x".into(), json!({"y": null}));
        let mut instance =
            engine::WorkflowInstance::new("definition", 2, json!({"n": u64::MAX, "m": i64::MIN}));
        instance.name = "definition-1".into();
        instance.root_workflow_id = Some("root".into());
        instance.description = Some("ü".into());
        instance.reference = Some(String::new());
        instance.execution_pointers = vec![pointer, engine::ExecutionPointer::new(0)];
        instance.next_execution = Some(i64::MAX);
        instance.status = engine::WorkflowStatus::Suspended;
        instance.create_time = time;
        instance.complete_time = Some(time);
        instance
    }

    fn plain(value: &impl Serialize) -> Value {
        serde_json::to_value(value).unwrap()
    }

    #[test]
    fn a_workflow_comes_back_whole() {
        let instance = workflow();
        let back = from_workflow(to_workflow(&instance).unwrap()).unwrap();
        assert_eq!(plain(&back), plain(&instance));
        // serde makes both of these null.
        let pointers = &back.execution_pointers;
        assert_eq!(pointers[0].event_data, Some(Value::Null));
        assert_eq!(pointers[1].event_data, None);
    }

    #[test]
    fn every_status_comes_back() {
        use engine::{PointerStatus as P, WorkflowStatus as W};
        let mut instance = workflow();
        for status in [W::Runnable, W::Suspended, W::Complete, W::Terminated] {
            instance.status = status;
            let message = to_workflow(&instance).unwrap();
            assert_eq!(
                message.status().as_str_name(),
                format!("WORKFLOW_STATUS_{}", screaming(&format!("{status:?}")))
            );
            assert_eq!(from_workflow(message).unwrap().status, status);
        }
        for status in [
            P::Pending,
            P::Running,
            P::Complete,
            P::Skipped,
            P::Sleeping,
            P::WaitingForEvent,
            P::Failed,
            P::Compensated,
            P::Cancelled,
            P::PendingPredecessor,
        ] {
            instance.execution_pointers[0].status = status;
            let message = to_workflow(&instance).unwrap();
            assert_eq!(
                message.execution_pointers[0].status().as_str_name(),
                format!("POINTER_STATUS_{}", screaming(&format!("{status:?}")))
            );
            let back = from_workflow(message).unwrap();
            assert_eq!(back.execution_pointers[0].status, status);
        }
    }

    fn screaming(camel: &str) -> String {
        let mut out = String::new();
        for (i, c) in camel.chars().enumerate() {
            if i > 0 && c.is_uppercase() {
                out.push('_');
            }
            out.push(c.to_ascii_uppercase());
        }
        out
    }

    #[test]
    fn unknown_enum_values_are_errors() {
        let mut message = to_workflow(&workflow()).unwrap();
        message.status = 99;
        let error = from_workflow(message).unwrap_err();
        assert!(error.to_string().contains("workflow status 99"), "{error}");
        let mut message = to_workflow(&workflow()).unwrap();
        message.execution_pointers[0].status = 0;
        assert!(from_workflow(message).is_err());
        let command = v1::ScheduledCommand {
            command_name: 3,
            ..Default::default()
        };
        assert!(from_command(command).is_err());
    }

    #[test]
    fn the_other_entities_come_back_whole() {
        let time = Utc.timestamp_opt(0, 1_000).unwrap();
        let event = engine::Event {
            event_time: time,
            is_processed: true,
            ..engine::Event::new("n", "", Value::Null)
        };
        assert_eq!(plain(&from_event(to_event(&event)).unwrap()), plain(&event));

        let mut subscription = engine::EventSubscription::new("w", 5, "p", "n", "k", time);
        let back = from_subscription(to_subscription(&subscription).unwrap()).unwrap();
        assert_eq!(plain(&back), plain(&subscription));
        subscription.subscription_data = Some(Value::Null);
        subscription.external_token = Some("t".into());
        subscription.external_worker_id = Some("w".into());
        subscription.external_token_expiry = Some(time);
        let back = from_subscription(to_subscription(&subscription).unwrap()).unwrap();
        assert_eq!(plain(&back), plain(&subscription));
        assert_eq!(back.subscription_data, Some(Value::Null));

        for command in [
            engine::ScheduledCommand::process_workflow("w", i64::MIN),
            engine::ScheduledCommand::process_event("e", i64::MAX),
        ] {
            let back = from_command(to_command(&command)).unwrap();
            assert_eq!(plain(&back), plain(&command));
        }

        let error = engine::ExecutionError::new("w", "", "m");
        let back = from_execution_error(to_execution_error(&error)).unwrap();
        assert_eq!(plain(&back), plain(&error));
    }

    #[test]
    fn times_are_exact_on_both_sides_of_1970() {
        for (seconds, nanos) in [
            (0, 0),
            (-1, 999_999_999),
            (-62_135_596_800, 0),
            (253_402_300_799, 999_999_999),
        ] {
            let time = Utc.timestamp_opt(seconds, nanos).unwrap();
            let message = to_time(time);
            assert_eq!(
                (message.seconds, message.nanos),
                (seconds, nanos as i32),
                "{time}"
            );
            assert_eq!(from_time(Some(message)).unwrap(), Some(time));
        }
    }

    #[test]
    fn a_leap_second_is_a_valid_timestamp() {
        let leap = DateTime::parse_from_rfc3339("2016-12-31T23:59:60.5Z")
            .unwrap()
            .to_utc();
        let message = to_time(leap);
        assert_eq!(
            from_time(Some(message)).unwrap().unwrap().to_rfc3339(),
            "2017-01-01T00:00:00.500+00:00"
        );
    }

    #[test]
    fn bad_times_are_errors() {
        for (seconds, nanos) in [(0, -1), (0, i32::MAX), (i64::MAX, 0)] {
            assert!(from_time(Some(Timestamp { seconds, nanos })).is_err());
        }
        assert!(from_required_time(None).is_err());
    }

    #[test]
    fn integers_keep_their_digits() {
        for text in [
            "18446744073709551615",
            "-9223372036854775808",
            "9007199254740993",
        ] {
            assert_eq!(to_json(&from_json(text).unwrap()), text);
        }
    }

    /// What PostgreSQL makes in `jsonb` of a number that has no fraction.
    fn through_jsonb(text: &str) -> String {
        let whole = |(digits, exponent): (&str, &str)| {
            let zeros = exponent.parse().ok()?;
            (!digits.contains('.')).then(|| format!("{digits}{}", "0".repeat(zeros)))
        };
        let expanded = text.split_once('e').and_then(whole);
        expanded.unwrap_or_else(|| text.to_string())
    }

    #[test]
    fn floats_stay_floats() {
        for number in [
            0.1,
            1e15,
            1e16,
            -1e16,
            1e21,
            1.5e300,
            f64::MAX,
            1e-7,
            5e-324,
        ] {
            let text = to_json(&json!(number));
            let back = from_json(&through_jsonb(&text)).unwrap();
            assert!(back.is_f64(), "{number} became {back} by {text}");
            assert_eq!(back.as_f64(), Some(number));
        }
    }

    #[test]
    fn text_is_escaped_as_json() {
        let value = json!({"\"k\\": "a\nb\u{1}ü😀"});
        assert_eq!(from_json(&to_json(&value)).unwrap(), value);
    }
}
