//! One device plugin: its server, its registration, and when to begin anew.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream};
use http::uri::PathAndQuery;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::protocol::{
    ALLOCATE, AllocateRequest, AllocateResponse, ContainerAllocateResponse, DeviceSpec, Empty,
    HEALTHY, LIST_AND_WATCH, ListAndWatchResponse, OPTIONS, Options, REGISTER, RegisterRequest,
    Share, UNHEALTHY, VERSION,
};
use super::{Device, KUBELET, LOOK, RETRY, SHARES, identity};
use crate::{blocking, chain};

/// Why a plugin could not begin, or ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot listen on {0}: {1}")]
    Listen(String, #[source] io::Error),
    #[error("the plugin's server")]
    Serve(#[source] tonic::transport::Error),
    #[error("the kubelet does not listen")]
    Connect(#[source] tonic::transport::Error),
    #[error("the kubelet refuses the plugin: {0}")]
    Refused(Status),
}

/// Runs the plugin of one device until `shutdown`, again and again.
pub(super) async fn run(device: &'static Device, dir: &Path, shutdown: CancellationToken) {
    // A node that has no such device is told of none; the resource is not shown with zero.
    while !blocking(device.works).await {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK * 5) => {}
        }
    }
    let mut told = String::new();
    loop {
        let ended = tokio::select! {
            () = shutdown.cancelled() => break,
            ended = once(device, dir) => ended,
        };
        match ended {
            Ok(()) => {
                told.clear();
                tracing::info!(
                    resource = device.resource,
                    "the kubelet has started anew: registered again"
                );
            }
            Err(error) => {
                let error = chain(&error);
                // A kubelet that is down is not news every second.
                if told != error {
                    tracing::warn!(resource = device.resource, %error, "device plugin, will be tried again");
                    told = error;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    // Gone by itself otherwise only with the directory.
    let _ = std::fs::remove_file(dir.join(device.socket));
}

/// Serves and registers; ends well when all that has to be done anew.
async fn once(device: &'static Device, dir: &Path) -> Result<(), Error> {
    let path = dir.join(device.socket);
    let listen = |error| Error::Listen(path.display().to_string(), error);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listen(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(listen)?;
    let own = identity(&path);
    let kubelet = dir.join(KUBELET);
    let served_by = identity(&kubelet);
    let (health, watched) = watch::channel(true);
    let plugin = Plugin {
        device,
        health: watched,
    };
    let serving = Server::builder()
        .add_service(plugin)
        .serve_with_incoming(accept(listener));
    let registered = async {
        register(device, &kubelet).await?;
        tracing::info!(
            resource = device.resource,
            "the kubelet hands out the device"
        );
        loop {
            tokio::time::sleep(LOOK).await;
            if identity(&path) != own || identity(&kubelet) != served_by {
                return Ok(());
            }
            let works = blocking(device.works).await;
            if works != *health.borrow() {
                tracing::warn!(
                    resource = device.resource,
                    works,
                    "the device changed its health"
                );
                health.send_replace(works);
            }
        }
    };
    tokio::select! {
        served = serving => served.map_err(Error::Serve),
        ended = registered => ended,
    }
}

fn accept(listener: UnixListener) -> impl Stream<Item = io::Result<tokio::net::UnixStream>> {
    futures::stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    })
}

/// Tells the kubelet of the plugin, which must be listening: the kubelet calls back at once.
async fn register(device: &Device, kubelet: &Path) -> Result<(), Error> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", kubelet.display()))
        .map_err(Error::Connect)?
        .connect_timeout(RETRY)
        .timeout(RETRY * 5);
    let channel = endpoint.connect().await.map_err(Error::Connect)?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(Error::Connect)?;
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: device.socket.to_owned(),
        resource_name: device.resource.to_owned(),
        options: Some(Options::default()),
    };
    let codec = ProstCodec::<RegisterRequest, Empty>::default();
    client
        .unary(
            Request::new(request),
            PathAndQuery::from_static(REGISTER),
            codec,
        )
        .await
        .map(drop)
        .map_err(Error::Refused)
}

/// The server of a plugin.
#[derive(Clone)]
struct Plugin {
    device: &'static Device,
    health: watch::Receiver<bool>,
}

impl NamedService for Plugin {
    const NAME: &'static str = "v1beta1.DevicePlugin";
}

impl Service<http::Request<Body>> for Plugin {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { device, health } = self.clone();
        match request.uri().path() {
            OPTIONS => unary(request, |_: &Empty| Options::default()),
            LIST_AND_WATCH => {
                let answer = move |_: Request<Empty>| {
                    let shares = shares(health.clone());
                    async move { Ok::<_, Status>(Response::new(shares)) }
                };
                async move {
                    let codec = ProstCodec::<ListAndWatchResponse, Empty>::default();
                    let mut grpc = tonic::server::Grpc::new(codec);
                    Ok(grpc
                        .server_streaming(tower::service_fn(answer), request)
                        .await)
                }
                .boxed()
            }
            ALLOCATE => unary(request, move |asked| allocate(device, asked)),
            // Calls that the options say are not wanted.
            _ => async { Ok(Status::unimplemented("not offered").into_http()) }.boxed(),
        }
    }
}

/// The answer to a call of one message each way.
fn unary<Q, A>(
    request: http::Request<Body>,
    answer: impl Fn(&Q) -> A + Send + Sync + 'static,
) -> BoxFuture<'static, Result<http::Response<Body>, Infallible>>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + 'static,
{
    let service = tower::service_fn(move |asked: Request<Q>| {
        let answer = answer(asked.get_ref());
        async move { Ok::<_, Status>(Response::new(answer)) }
    });
    async move {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default());
        Ok(grpc.unary(service, request).await)
    }
    .boxed()
}

/// All shares with their health, now and whenever it changes.
fn shares(
    health: watch::Receiver<bool>,
) -> impl Stream<Item = Result<ListAndWatchResponse, Status>> + Send + 'static {
    futures::stream::unfold((health, true), async |(mut health, first)| {
        if !first {
            health.changed().await.ok()?;
        }
        let word = if *health.borrow_and_update() {
            HEALTHY
        } else {
            UNHEALTHY
        };
        let devices = (0..SHARES)
            .map(|number| Share {
                id: number.to_string(),
                health: word.to_owned(),
            })
            .collect();
        Some((Ok(ListAndWatchResponse { devices }), (health, false)))
    })
}

/// The one device for every container that asks, whichever share it was given.
fn allocate(device: &Device, asked: &AllocateRequest) -> AllocateResponse {
    let spec = DeviceSpec {
        container_path: device.path.to_owned(),
        host_path: device.path.to_owned(),
        permissions: "rw".to_owned(),
    };
    let answer = ContainerAllocateResponse {
        devices: vec![spec],
        ..ContainerAllocateResponse::default()
    };
    AllocateResponse {
        container_responses: vec![answer; asked.container_requests.len()],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use futures::StreamExt as _;
    use tokio::sync::mpsc;

    use super::super::protocol::ContainerAllocateRequest;
    use super::*;

    static WORKS: AtomicBool = AtomicBool::new(true);
    static NULL: Device = Device {
        resource: "devices.example/null",
        path: "/dev/null",
        socket: "null.sock",
        works: || WORKS.load(Ordering::Relaxed),
    };

    /// The kubelet's half of registration: tells of each plugin that registers.
    #[derive(Clone)]
    struct Kubelet(mpsc::UnboundedSender<RegisterRequest>);

    impl NamedService for Kubelet {
        const NAME: &'static str = "v1beta1.Registration";
    }

    impl Service<http::Request<Body>> for Kubelet {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let told = self.0.clone();
            unary(request, move |asked: &RegisterRequest| {
                let _ = told.send(asked.clone());
                Empty {}
            })
        }
    }

    fn kubelet(
        dir: &Path,
        told: &mpsc::UnboundedSender<RegisterRequest>,
    ) -> tokio::task::JoinHandle<()> {
        let path = dir.join(KUBELET);
        // As a kubelet does it: everything that is there goes.
        for old in std::fs::read_dir(dir).unwrap() {
            std::fs::remove_file(old.unwrap().path()).unwrap();
        }
        let listener = UnixListener::bind(path).unwrap();
        let kubelet = Kubelet(told.clone());
        tokio::spawn(async move {
            let _ = Server::builder()
                .add_service(kubelet)
                .serve_with_incoming(accept(listener))
                .await;
        })
    }

    #[tokio::test]
    async fn a_kubelet_hears_of_the_device_and_hands_it_out_also_after_it_has_started_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (told, mut plugins) = mpsc::unbounded_channel();
        let first = kubelet(dir.path(), &told);
        let stop = CancellationToken::new();
        let place = Arc::new(dir.path().to_owned());
        let running = tokio::spawn({
            let (place, stop) = (place.clone(), stop.clone());
            async move { run(&NULL, &place, stop).await }
        });
        let patience = Duration::from_secs(10);
        let plugin = tokio::time::timeout(patience, plugins.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(plugin.version, "v1beta1");
        assert_eq!(plugin.resource_name, "devices.example/null");

        let socket = dir.path().join(plugin.endpoint);
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let codec = ProstCodec::<Empty, ListAndWatchResponse>::default();
        let listed = client
            .server_streaming(
                Request::new(Empty {}),
                PathAndQuery::from_static(LIST_AND_WATCH),
                codec,
            )
            .await
            .unwrap();
        let mut listed = listed.into_inner();
        let shares = listed.next().await.unwrap().unwrap().devices;
        assert_eq!(shares.len(), SHARES);
        assert!(shares.iter().all(|share| share.health == HEALTHY));

        client.ready().await.unwrap();
        let asked = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                device_ids: vec!["7".to_owned()],
            }],
        };
        let codec = ProstCodec::<AllocateRequest, AllocateResponse>::default();
        let given = client
            .unary(
                Request::new(asked),
                PathAndQuery::from_static(ALLOCATE),
                codec,
            )
            .await
            .unwrap();
        let given = given.into_inner().container_responses;
        assert_eq!(given.len(), 1);
        assert_eq!(given[0].devices[0].host_path, "/dev/null");

        // A device that breaks is told at once to who watches.
        WORKS.store(false, Ordering::Relaxed);
        let shares = tokio::time::timeout(patience, listed.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .devices;
        assert!(shares.iter().all(|share| share.health == UNHEALTHY));
        WORKS.store(true, Ordering::Relaxed);

        first.abort();
        let _again = kubelet(dir.path(), &told);
        let plugin = tokio::time::timeout(patience, plugins.recv())
            .await
            .unwrap();
        assert_eq!(plugin.unwrap().endpoint, "null.sock");
        stop.cancel();
        running.await.unwrap();
        assert!(!dir.path().join("null.sock").exists());
    }
}
