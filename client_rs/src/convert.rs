//! Converts between the engine's model and the messages of the API, without losing or
//! guessing anything.

mod lifecycle;
mod values;

use std::collections::HashMap;

use wfe_core::models as engine;

pub(crate) use self::lifecycle::{from_lifecycle_event, to_lifecycle_event};
pub(crate) use self::values::{append_json, from_time, to_step_id, to_time};
use self::values::{from_json, from_optional_json, from_required_time, from_step_id, to_json};
use crate::error::{Error, Result};
use crate::v1;

/// A workflow to send.
pub(crate) fn to_workflow(instance: &engine::WorkflowInstance) -> Result<v1::WorkflowInstance> {
    let pointers = instance.execution_pointers.iter().map(to_pointer);
    Ok(v1::WorkflowInstance {
        execution_pointers: pointers.collect::<Result<_>>()?,
        ..to_header(instance)
    })
}

/// A workflow without its pointers.
pub(crate) fn to_header(instance: &engine::WorkflowInstance) -> v1::WorkflowInstance {
    v1::WorkflowInstance {
        id: instance.id.clone(),
        name: instance.name.clone(),
        root_workflow_id: instance.root_workflow_id.clone(),
        workflow_definition_id: instance.workflow_definition_id.clone(),
        version: instance.version,
        description: instance.description.clone(),
        reference: instance.reference.clone(),
        next_execution: instance.next_execution,
        status: to_workflow_status(instance.status).into(),
        data_json: to_json(&instance.data),
        create_time: Some(to_time(instance.create_time)),
        complete_time: instance.complete_time.map(to_time),
        ..Default::default()
    }
}

pub(crate) fn to_workflow_status(status: engine::WorkflowStatus) -> v1::WorkflowStatus {
    match status {
        engine::WorkflowStatus::Runnable => v1::WorkflowStatus::Runnable,
        engine::WorkflowStatus::Suspended => v1::WorkflowStatus::Suspended,
        engine::WorkflowStatus::Complete => v1::WorkflowStatus::Complete,
        engine::WorkflowStatus::Terminated => v1::WorkflowStatus::Terminated,
    }
}

/// A workflow that was received.
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

pub(crate) fn to_pointer(pointer: &engine::ExecutionPointer) -> Result<v1::ExecutionPointer> {
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
            // The engine has no such status, and any other would replace it at the next persist.
            Status::Legacy | Status::Unspecified => {
                return Err(unknown("pointer status", message.status))
            }
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

/// An event that was received.
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

/// A subscription that was received.
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

/// A command that was received.
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

/// A logged error that was received.
pub(crate) fn from_execution_error(message: v1::ExecutionError) -> Result<engine::ExecutionError> {
    Ok(engine::ExecutionError {
        error_time: from_required_time(message.error_time)?,
        workflow_id: message.workflow_id,
        execution_pointer_id: message.execution_pointer_id,
        message: message.message,
    })
}

fn unknown(what: &str, number: i32) -> Error {
    Error::bad_response(&format!(
        "{what} {number}, which this version does not know"
    ))
}

#[cfg(test)]
mod tests {
    use chrono::{TimeZone, Utc};
    use serde::Serialize;
    use serde_json::{json, Value};

    use super::*;

    /// A workflow with every field set.
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

    /// What serde makes of a value, to compare by.
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
        let mut message = to_workflow(&workflow()).unwrap();
        message.execution_pointers[0].set_status(v1::PointerStatus::Legacy);
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
}
