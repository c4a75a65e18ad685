//! Lifecycle events.

use wfe_core::models as engine;

use super::unknown;
use super::values::{from_required_time, from_step_id, to_step_id, to_time};
use crate::error::Result;
use crate::v1::{self, LifecycleEventType as Type};

/// A lifecycle event to publish.
pub(crate) fn to_lifecycle_event(event: &engine::LifecycleEvent) -> Result<v1::LifecycleEvent> {
    use engine::LifecycleEventType as Engine;
    let mut message = v1::LifecycleEvent {
        workflow_id: event.workflow_instance_id.clone(),
        workflow_definition_id: event.workflow_definition_id.clone(),
        version: event.version,
        reference: event.reference.clone(),
        event_time: Some(to_time(event.event_time_utc)),
        ..Default::default()
    };
    let mut of_step = |step_id: usize, step_name: &Option<String>| -> Result<()> {
        message.step_id = Some(to_step_id(step_id)?);
        message.step_name.clone_from(step_name);
        Ok(())
    };
    let r#type = match &event.event_type {
        Engine::Started => Type::Started,
        Engine::Resumed => Type::Resumed,
        Engine::Suspended => Type::Suspended,
        Engine::Completed => Type::Completed,
        Engine::Terminated => Type::Terminated,
        Engine::Error { message: text } => {
            message.message = Some(text.clone());
            Type::Error
        }
        Engine::StepStarted { step_id, step_name } => {
            of_step(*step_id, step_name)?;
            Type::StepStarted
        }
        Engine::StepCompleted { step_id, step_name } => {
            of_step(*step_id, step_name)?;
            Type::StepCompleted
        }
    };
    message.r#type = r#type.into();
    Ok(message)
}

/// A lifecycle event that was received.
pub(crate) fn from_lifecycle_event(message: v1::LifecycleEvent) -> Result<engine::LifecycleEvent> {
    use engine::LifecycleEventType as Engine;
    let step_id = from_step_id(message.step_id.unwrap_or_default())?;
    Ok(engine::LifecycleEvent {
        event_type: match message.r#type() {
            Type::Started => Engine::Started,
            Type::Resumed => Engine::Resumed,
            Type::Suspended => Engine::Suspended,
            Type::Completed => Engine::Completed,
            Type::Terminated => Engine::Terminated,
            Type::Error => Engine::Error {
                message: message.message.unwrap_or_default(),
            },
            Type::StepStarted => Engine::StepStarted {
                step_id,
                step_name: message.step_name,
            },
            Type::StepCompleted => Engine::StepCompleted {
                step_id,
                step_name: message.step_name,
            },
            Type::Unspecified => return Err(unknown("lifecycle event type", message.r#type)),
        },
        event_time_utc: from_required_time(message.event_time)?,
        workflow_instance_id: message.workflow_id,
        workflow_definition_id: message.workflow_definition_id,
        version: message.version,
        reference: message.reference,
    })
}

#[cfg(test)]
mod tests {
    use engine::LifecycleEventType as Engine;

    use super::*;

    #[test]
    fn every_type_comes_back_whole() {
        let step_name = Some("ü".to_string());
        for event_type in [
            Engine::Started,
            Engine::Resumed,
            Engine::Suspended,
            Engine::Completed,
            Engine::Terminated,
            Engine::Error {
                message: "why".into(),
            },
            Engine::StepStarted {
                step_id: 3,
                step_name: step_name.clone(),
            },
            Engine::StepCompleted {
                step_id: 0,
                step_name: None,
            },
        ] {
            let mut event = engine::LifecycleEvent::new("w", "d", 7, event_type.clone());
            event.reference = Some("r".into());
            let message = to_lifecycle_event(&event).unwrap();
            let back = from_lifecycle_event(message.clone()).unwrap();
            assert_eq!(back.event_type, event_type);
            assert_eq!(to_lifecycle_event(&back).unwrap(), message);
        }
        assert!(from_lifecycle_event(v1::LifecycleEvent::default()).is_err());
    }
}
