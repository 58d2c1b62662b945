//! The thin shell between the API server, which has no VM words, and the `admission` crate, which is only them.

use berth_admission as vm;
use berth_apiserver::{Admission, AdmissionDenied, AdmissionRequest, Admitted, Cause, Operation};

/// What berth accepts, changes and refuses, called in process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InProcess;

impl Admission for InProcess {
    fn admit(&self, request: AdmissionRequest<'_>) -> Result<Admitted, AdmissionDenied> {
        // Every kind that the crate decides on is of these groups; a kind of the same name elsewhere is none of its business.
        if ![berth_api::kubevirt::GROUP, berth_api::cdi::GROUP].contains(&request.group) {
            return Ok(Admitted::default());
        }
        let operation = match request.operation {
            Operation::Create => vm::Operation::Create,
            Operation::Update => vm::Operation::Update,
            Operation::Delete => vm::Operation::Delete,
        };
        let decision = vm::admit(&vm::Request {
            operation,
            kind: request.kind,
            subresource: request.subresource,
            namespace: request.namespace,
            name: request.name,
            object: request.object,
            old_object: request.old_object,
        });
        match decision {
            Ok(vm::Admitted { object, warnings }) => Ok(Admitted { object, warnings }),
            Err(refusal) => Err(AdmissionDenied::Invalid(
                refusal.causes.into_iter().map(cause).collect(),
            )),
        }
    }
}

fn cause(cause: vm::Cause) -> Cause {
    Cause {
        reason: cause.reason.as_str().to_owned(),
        field: cause.field,
        message: cause.message,
    }
}
