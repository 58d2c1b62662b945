//! The devices of this machine's guests, for those who look into them from outside.

use std::sync::Arc;

use berth_subresources::{Device, Guests, Launcher};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::net::UnixStream;

use crate::PodSandboxes;
use crate::untrusted::Socket;

/// Name of the console socket in the pod's run directory.
const CONSOLE: &str = "console.sock";

/// Guests whose launcher pods are on this machine.
pub(crate) struct LocalGuests(pub(crate) Arc<dyn PodSandboxes>);

impl Guests for LocalGuests {
    fn console<'a>(&'a self, of: Launcher<'a>) -> BoxFuture<'a, Result<Box<dyn Device>, String>> {
        async move {
            let pod = self
                .0
                .locate(of.pod)
                .ok_or("its launcher pod is not on this node")?;
            let silent = |error: std::io::Error| format!("its console does not answer: {error}");
            let socket = Socket::open(&pod.run_dir.join(CONSOLE), pod.uid).map_err(silent)?;
            let stream = UnixStream::connect(socket.path()).await.map_err(silent)?;
            Ok(Box::new(stream) as Box<dyn Device>)
        }
        .boxed()
    }
}
