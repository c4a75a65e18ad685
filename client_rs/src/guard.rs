//! Steps that panic.

use std::any::Any;
use std::future::{poll_fn, Future};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::pin;

use async_trait::async_trait;
use wfe_core::models::ExecutionResult;
use wfe_core::traits::step::{StepBody, StepExecutionContext};
use wfe_core::WfeError;

/// A step that fails if it panics. Register it instead of the step itself:
///
/// ```no_run
/// # use wfe_core::traits::step::{StepBody, StepExecutionContext};
/// # #[derive(Default)] struct Charge;
/// # #[async_trait::async_trait] impl StepBody for Charge {
/// #     async fn run(
/// #         &mut self, _: &StepExecutionContext<'_>,
/// #     ) -> wfe_core::Result<wfe_core::models::ExecutionResult> { unimplemented!() }
/// # }
/// # struct Host;
/// # impl Host { async fn register_step_factory(
/// #     &self, _: &str, _: impl Fn() -> Box<dyn StepBody> + Send + Sync + 'static) {} }
/// # async fn example(host: Host) {
/// use wfe_persistence_client::guarded;
///
/// // host.register_step::<Charge>().await;
/// host.register_step_factory(std::any::type_name::<Charge>(), guarded::<Charge>).await;
/// # }
/// ```
///
/// A panic otherwise ends the engine's consumer, the only task of its host that runs workflows,
/// and nobody is told: not the provider either, which goes on renewing the lease on the workflow's
/// item, as for a step that takes long, until [`Builder::longest_step`](crate::Builder) has passed.
/// Guarded, the step ends with an error, as if it had returned one: it is logged in the store, and
/// is run again, or whatever else the definition says for errors; and the host goes on. (With
/// `panic = "abort"` the process ends, and the item comes back when the lease expires.)
pub fn guarded<S: StepBody + Default + 'static>() -> Box<dyn StepBody> {
    Box::new(Guarded::<S>(None))
}

/// The step is made by the first call, as that may panic, too.
struct Guarded<S>(Option<S>);

impl<S: Default> Guarded<S> {
    fn step(&mut self) -> &mut S {
        self.0.get_or_insert_with(S::default)
    }
}

#[async_trait]
impl<S: StepBody + Default> StepBody for Guarded<S> {
    async fn run(
        &mut self,
        context: &StepExecutionContext<'_>,
    ) -> wfe_core::Result<ExecutionResult> {
        caught(async { self.step().run(context).await }).await
    }

    async fn mount_artifacts(
        &mut self,
        context: &StepExecutionContext<'_>,
    ) -> wfe_core::Result<()> {
        caught(async { self.step().mount_artifacts(context).await }).await
    }

    async fn unmount_artifacts(
        &mut self,
        context: &StepExecutionContext<'_>,
    ) -> wfe_core::Result<()> {
        caught(async { self.step().unmount_artifacts(context).await }).await
    }
}

/// What it returns; an error if it panics. The step is not run again then: for each run, the engine
/// makes a new one.
async fn caught<T>(step: impl Future<Output = wfe_core::Result<T>>) -> wfe_core::Result<T> {
    let mut step = pin!(step);
    let outcome = poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| step.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        }
    });
    outcome.await.unwrap_or_else(|panic| {
        let said = message(panic.as_ref());
        Err(WfeError::StepExecution(format!(
            "the step panicked: {said}"
        )))
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(it did not say why)")
}
