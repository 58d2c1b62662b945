//! The devices of this machine's guests, for those who look into them from outside.

use std::sync::Arc;
use std::time::Duration;

use berth_launcher::protocol::{CONTROL_SOCKET, Client};
use berth_subresources::{Device, Guests, Launcher, Order};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::net::UnixStream;

use crate::untrusted::Socket;
use crate::{PodSandboxes, chain};

/// Name of the console socket in the pod's run directory.
const CONSOLE: &str = "console.sock";

/// How long a launcher may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Guests whose launcher pods are on this machine.
pub(crate) struct LocalGuests(pub(crate) Arc<dyn PodSandboxes>);

impl Guests for LocalGuests {
    fn order<'a>(&'a self, of: Launcher<'a>, order: Order) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let pod = self
                .0
                .locate(of.pod)
                .ok_or("its launcher pod is not on this node")?;
            let socket = pod.run_dir.join(CONTROL_SOCKET);
            let launcher = Client::connect(&socket, Some(pod.uid), PATIENCE)
                .await
                .map_err(|error| chain(&error))?;
            let done = match order {
                Order::Pause => launcher.pause().await,
                Order::Unpause => launcher.resume().await,
            };
            done.map(drop).map_err(|error| chain(&error))
        }
        .boxed()
    }

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
