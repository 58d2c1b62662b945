//! The devices of this machine's guests, for those who look into them from outside.

use std::sync::Arc;
use std::time::Duration;

use berth_launcher::protocol::{CONSOLE_SOCKET, CONTROL_SOCKET, Client, VNC_SOCKET};
use berth_subresources::{Device, Guests, Launcher, Order, Port};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::net::UnixStream;

use crate::untrusted::Socket;
use crate::{PodSandboxes, chain};

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

    fn open<'a>(
        &'a self,
        of: Launcher<'a>,
        port: Port,
    ) -> BoxFuture<'a, Result<Box<dyn Device>, String>> {
        async move {
            let pod = self
                .0
                .locate(of.pod)
                .ok_or("its launcher pod is not on this node")?;
            let name = match port {
                Port::Console => CONSOLE_SOCKET,
                Port::Vnc => VNC_SOCKET,
            };
            let silent =
                |error: std::io::Error| format!("its {} does not answer: {error}", port.as_str());
            let socket = Socket::open(&pod.run_dir.join(name), pod.uid).map_err(silent)?;
            let stream = UnixStream::connect(socket.path()).await.map_err(silent)?;
            Ok(Box::new(stream) as Box<dyn Device>)
        }
        .boxed()
    }
}
