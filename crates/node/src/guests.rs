//! The devices of this machine's guests, for those who look into them from outside.

use std::sync::Arc;
use std::time::Duration;

use berth_launcher::protocol::{
    CONSOLE_SOCKET, CONTROL_SOCKET, Client, ClientError, LauncherState, Question, VNC_SOCKET,
};
use berth_subresources::{Device, Guests, Launcher, Order, Port};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::untrusted::Socket;
use crate::{PodSandboxes, chain};

/// How long a launcher may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Guests whose launcher pods are on this machine.
pub(crate) struct LocalGuests(pub(crate) Arc<dyn PodSandboxes>);

fn said(done: Result<LauncherState, ClientError>) -> Result<Value, String> {
    match done {
        Ok(_) => Ok(Value::Null),
        Err(error) => Err(chain(&error)),
    }
}

impl Guests for LocalGuests {
    fn order<'a>(
        &'a self,
        of: Launcher<'a>,
        order: &'a Order,
    ) -> BoxFuture<'a, Result<Value, String>> {
        async move {
            let pod = self
                .0
                .locate(of.pod)
                .ok_or("its launcher pod is not on this node")?;
            let socket = pod.run_dir.join(CONTROL_SOCKET);
            let launcher = Client::connect(&socket, Some(pod.uid), PATIENCE)
                .await
                .map_err(|error| chain(&error))?;
            let question = match *order {
                Order::Pause => return said(launcher.pause().await),
                Order::Unpause => return said(launcher.resume().await),
                Order::Shutdown { grace_seconds } => {
                    return said(launcher.shutdown(grace_seconds).await);
                }
                Order::Reset => Question::Reset,
                Order::SoftReboot => Question::Reboot,
                Order::Freeze { thaw_after_seconds } => Question::Freeze { thaw_after_seconds },
                Order::Unfreeze => Question::Thaw,
                Order::GuestInfo => Question::GuestInfo,
                Order::Users => Question::Users,
                Order::FileSystems => Question::FileSystems,
                Order::Screenshot => Question::Screenshot,
            };
            launcher.ask(question).await.map_err(|error| chain(&error))
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
