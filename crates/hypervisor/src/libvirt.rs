//! libvirt behind the [`Hypervisor`] trait.
//!
//! The `virt` crate wraps the calls; domain events it does not wrap, so this module registers them itself. One OS thread
//! for the process runs libvirt's event loop; its callbacks do nothing but forward into a channel. Calls block inside
//! libvirt, so each runs on the blocking pool of the runtime; libvirt allows any number at once on one connection.

use std::ffi::CStr;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::stream::Stream;
use virt_sys as sys;

use crate::host::Host;
use crate::{
    DomainEvent, DomainEventKind, DomainInfo, Error, Events, Hypervisor, PauseReason, RunState,
    StopReason,
};

/// Seconds between keepalive messages, and how many may stay unanswered. A daemon that hangs is noticed in 20 s.
const KEEPALIVE: (i32, u32) = (5, 3);

/// Largest picture of a screen that is taken: 4096 × 2160 points.
const PICTURE_MAX: usize = 27 << 20;

type Sender = mpsc::UnboundedSender<DomainEvent>;
type WeakSender = mpsc::WeakUnboundedSender<DomainEvent>;

/// One connection to a libvirt daemon.
#[derive(Debug, Clone)]
pub struct Libvirt {
    connection: Arc<Connection>,
}

/// Prepares the process: libvirt shall neither start daemons behind our back nor print errors by itself.
///
/// Call it first thing in `main`, before any thread exists.
pub fn prepare_process() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // SAFETY: changing the environment races with other threads that read it; the caller runs this before there
        // are any, as the documentation of the function demands.
        unsafe { std::env::set_var("LIBVIRT_AUTOSTART", "0") };
    });
}

impl Libvirt {
    /// Connects and subscribes to the events of all domains.
    pub async fn open(uri: &str) -> Result<(Self, Events), Error> {
        let uri = uri.to_owned();
        blocking("connect", move || {
            start_event_loop()?;
            let (sender, events) = mpsc::unbounded_channel();
            let connection = Connection::open(&uri, &sender)?;
            Ok((
                Self {
                    connection: Arc::new(connection),
                },
                events,
            ))
        })
        .await
    }

    /// The capabilities of QEMU for one kind of domain (`qemu` or `kvm`), as libvirt's XML. Makes libvirt probe QEMU.
    pub async fn domain_capabilities(&self, kind: &'static str) -> Result<String, Error> {
        let connection = Arc::clone(&self.connection);
        blocking("read the domain capabilities", move || {
            connection
                .connect
                .get_domain_capabilities(None, None, None, Some(kind), 0)
                .map_err(|error| call("read the domain capabilities", &error))
        })
        .await
    }

    /// What the host can run, for one kind of domain (`qemu` or `kvm`). Makes libvirt probe QEMU.
    pub async fn host(&self, kind: &'static str) -> Result<Host, Error> {
        let of_domains = self.domain_capabilities(kind).await?;
        let connection = Arc::clone(&self.connection);
        blocking("read the capabilities", move || {
            let of_host = connection
                .connect
                .get_capabilities()
                .map_err(|error| call("read the capabilities", &error))?;
            Host::read(&of_domains, &of_host).map_err(|error| Error::Call {
                operation: "read the capabilities",
                message: error.to_string(),
            })
        })
        .await
    }

    /// Whether a machine of this name runs or is defined, and its UUID.
    pub async fn lookup_by_name(&self, name: &str) -> Result<DomainInfo, Error> {
        let (connection, name) = (Arc::clone(&self.connection), name.to_owned());
        blocking("look a domain up", move || {
            let domain = Domain::lookup_by_name(&connection.connect, &name)
                .map_err(|error| not_found(&name, &error))?;
            info(&domain)
        })
        .await
    }

    /// Closes the connection without blocking the executor. Dropping the value does the same, but blocks.
    pub async fn close(self) {
        let closed = blocking("close the connection", move || {
            drop(self);
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::debug!("{error}");
        }
    }

    /// Runs one call on one domain on the blocking pool.
    async fn with<T: Send + 'static>(
        &self,
        operation: &'static str,
        uuid: &str,
        work: impl FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (connection, uuid) = (Arc::clone(&self.connection), uuid.to_owned());
        blocking(operation, move || {
            let domain = Domain::lookup_by_uuid_string(&connection.connect, &uuid)
                .map_err(|error| not_found(&uuid, &error))?;
            work(&domain)
        })
        .await
    }

    /// Does one thing to the domain.
    async fn act(
        &self,
        operation: &'static str,
        uuid: &str,
        act: impl FnOnce(&Domain) -> Result<(), virt::error::Error> + Send + 'static,
    ) -> Result<(), Error> {
        self.with(operation, uuid, move |domain| {
            act(domain).map_err(|error| call(operation, &error))
        })
        .await
    }
}

impl Hypervisor for Libvirt {
    async fn define(&self, xml: &str) -> Result<DomainInfo, Error> {
        let (connection, xml) = (Arc::clone(&self.connection), xml.to_owned());
        blocking("define the domain", move || {
            let domain = Domain::define_xml(&connection.connect, &xml)
                .map_err(|error| Error::Definition(words(&error)))?;
            info(&domain)
        })
        .await
    }

    async fn start(&self, uuid: &str, paused: bool) -> Result<DomainInfo, Error> {
        self.with("start the domain", uuid, move |domain| {
            let flags = if paused {
                sys::VIR_DOMAIN_START_PAUSED
            } else {
                sys::VIR_DOMAIN_NONE
            };
            domain
                .create_with_flags(flags)
                .map_err(|error| Error::Start(words(&error)))?;
            let xml = domain.get_xml_desc(0).unwrap_or_default();
            Ok(DomainInfo {
                machine: machine_of(&xml).map(str::to_owned),
                ..info(domain)?
            })
        })
        .await
    }

    async fn lookup(&self, uuid: &str) -> Result<DomainInfo, Error> {
        self.with("look a domain up", uuid, info).await
    }

    async fn state(&self, uuid: &str) -> Result<RunState, Error> {
        self.with("read the domain's state", uuid, |domain| {
            let (state, reason) = domain
                .get_state()
                .map_err(|error| call("read the domain's state", &error))?;
            Ok(run_state(state, reason))
        })
        .await
    }

    async fn shutdown(&self, uuid: &str) -> Result<(), Error> {
        self.with("press the power button", uuid, |domain| {
            domain
                .shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
                .map(drop)
                .map_err(|error| call("press the power button", &error))
        })
        .await
    }

    async fn destroy(&self, uuid: &str) -> Result<(), Error> {
        self.with("cut the power", uuid, |domain| match domain.destroy() {
            Ok(()) => Ok(()),
            // It ended by itself while we were asked.
            Err(_) if matches!(domain.is_active(), Ok(false)) => Ok(()),
            Err(error) => Err(call("cut the power", &error)),
        })
        .await
    }

    async fn undefine(&self, uuid: &str) -> Result<(), Error> {
        self.with("undefine the domain", uuid, |domain| {
            let all = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | sys::VIR_DOMAIN_UNDEFINE_NVRAM
                | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
            domain
                .undefine_flags(all)
                // The test driver knows fewer flags.
                .or_else(|_| domain.undefine())
                .map_err(|error| call("undefine the domain", &error))
        })
        .await
    }

    async fn suspend(&self, uuid: &str) -> Result<(), Error> {
        self.act("pause the domain", uuid, |domain| {
            domain.suspend().map(drop)
        })
        .await
    }

    async fn resume(&self, uuid: &str) -> Result<(), Error> {
        self.act("resume the domain", uuid, |domain| {
            domain.resume().map(drop)
        })
        .await
    }

    async fn reset(&self, uuid: &str) -> Result<(), Error> {
        self.act("reset the domain", uuid, |domain| domain.reset().map(drop))
            .await
    }

    async fn reboot(&self, uuid: &str) -> Result<(), Error> {
        self.act("ask the guest to restart", uuid, |domain| {
            domain.reboot(sys::VIR_DOMAIN_REBOOT_DEFAULT)
        })
        .await
    }

    async fn screenshot(&self, uuid: &str) -> Result<Vec<u8>, Error> {
        let connection = Arc::clone(&self.connection);
        self.with("look at the screen", uuid, move |domain| {
            let failed = |error: virt::error::Error| call("look at the screen", &error);
            let stream = Stream::new(&connection.connect, 0).map_err(failed)?;
            domain.screenshot(&stream, 0, 0).map_err(failed)?;
            let (mut picture, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
            loop {
                let read = stream.recv(&mut buffer).map_err(failed)?;
                if read == 0 {
                    break;
                }
                if picture.len() + read > PICTURE_MAX {
                    // Half a picture is of no use; the stream's end is not waited for.
                    let _ = stream.abort();
                    return Err(Error::Call {
                        operation: "look at the screen",
                        message: format!("the picture has more than {PICTURE_MAX} bytes"),
                    });
                }
                picture.extend_from_slice(&buffer[..read]);
            }
            stream.finish().map_err(failed)?;
            Ok(picture)
        })
        .await
    }

    async fn agent(&self, uuid: &str, command: &str, patience: Duration) -> Result<String, Error> {
        let command = command.to_owned();
        let seconds = i32::try_from(patience.as_secs()).unwrap_or(i32::MAX);
        self.with("ask the guest's agent", uuid, move |domain| {
            domain
                .qemu_agent_command(&command, seconds, 0)
                .map_err(|error| call("ask the guest's agent", &error))
        })
        .await
    }
}

/// The connection and what is registered on it; undone in the reverse order.
#[derive(Debug)]
struct Connection {
    connect: Connect,
    /// Numbers of the callbacks.
    watched: Vec<libc::c_int>,
    close_watched: bool,
}

impl Connection {
    fn open(uri: &str, sender: &Sender) -> Result<Self, Error> {
        let connect = Connect::open(Some(uri)).map_err(|error| Error::Connect {
            uri: uri.to_owned(),
            message: words(&error),
        })?;
        let mut this = Self {
            connect,
            watched: Vec::new(),
            close_watched: false,
        };
        this.watch(
            sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            on_lifecycle,
            sender.clone(),
        )?;
        // Drivers without guests have none.
        if let Err(error) = this.watch(
            sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
            on_agent,
            sender.clone(),
        ) {
            tracing::debug!("{error}");
        }
        this.watch_close(sender);
        // In-process drivers have no keepalive; that is no loss.
        if let Err(error) = this.connect.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1) {
            tracing::debug!("no keepalive on {uri}: {}", words(&error));
        }
        Ok(this)
    }

    /// Has the callback called for the events of this number, whose callbacks must have that signature.
    fn watch(
        &mut self,
        event: sys::virDomainEventID,
        callback: DomainCallback,
        sender: Sender,
    ) -> Result<(), Error> {
        let opaque = Box::into_raw(Box::new(sender));
        // SAFETY: libvirt declares every event callback as the generic type and calls it as the type that belongs to
        // the event's number; for both that are used here it is `DomainCallback`. Only the type of the pointer changes.
        let callback = unsafe {
            std::mem::transmute::<
                DomainCallback,
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut libc::c_void),
            >(callback)
        };
        // SAFETY: the connection is open; `opaque` stays valid until libvirt calls `free_sender`, exactly once.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                self.connect.as_ptr(),
                std::ptr::null_mut(),
                event as libc::c_int,
                Some(callback),
                opaque.cast(),
                Some(free_sender),
            )
        };
        if id < 0 {
            let error = virt::error::Error::last_error();
            // SAFETY: libvirt did not take `opaque`, so it is still ours, and nobody else knows it.
            drop(unsafe { Box::from_raw(opaque) });
            return Err(call("subscribe to domain events", &error));
        }
        self.watched.push(id);
        Ok(())
    }

    fn watch_close(&mut self, sender: &Sender) {
        // Weak: a driver without a daemon accepts the callback and forgets it, and the events must still end.
        let opaque = Box::into_raw(Box::new(sender.downgrade()));
        // SAFETY: as above; libvirt calls `free_weak` once the callback is unregistered or the connection is gone.
        let result = unsafe {
            sys::virConnectRegisterCloseCallback(
                self.connect.as_ptr(),
                Some(on_close),
                opaque.cast(),
                Some(free_weak),
            )
        };
        if result < 0 {
            // SAFETY: libvirt did not take `opaque`.
            drop(unsafe { Box::from_raw(opaque) });
            tracing::debug!(
                "cannot watch the connection: {}",
                words(&virt::error::Error::last_error())
            );
        } else {
            self.close_watched = true;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let connection = self.connect.as_ptr();
        // SAFETY: the connection is open until the `close` below; each callback is unregistered once. On a broken
        // connection the calls fail, which changes nothing: libvirt frees the callbacks with the connection.
        unsafe {
            for id in self.watched.drain(..) {
                sys::virConnectDomainEventDeregisterAny(connection, id);
            }
            if self.close_watched {
                sys::virConnectUnregisterCloseCallback(connection, Some(on_close));
            }
        }
        // `Connect` itself gives its reference back when it is dropped.
    }
}

type DomainCallback = unsafe extern "C" fn(
    sys::virConnectPtr,
    sys::virDomainPtr,
    libc::c_int,
    libc::c_int,
    *mut libc::c_void,
) -> libc::c_int;

unsafe extern "C" fn on_lifecycle(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: libc::c_int,
    detail: libc::c_int,
    opaque: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: libvirt lends a valid domain for the time of the callback, and `opaque` is the box of `watch`.
    unsafe { forward(domain, event_kind(event, detail), opaque) }
}

unsafe extern "C" fn on_agent(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: libc::c_int,
    _reason: libc::c_int,
    opaque: *mut libc::c_void,
) -> libc::c_int {
    let connected = state as sys::virConnectDomainEventAgentLifecycleState
        == sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED;
    // SAFETY: as in `on_lifecycle`.
    unsafe { forward(domain, DomainEventKind::Agent { connected }, opaque) }
}

/// Puts an event of a domain into the channel.
///
/// # Safety
/// `domain` must be valid, and `opaque` the box of `watch`.
unsafe fn forward(
    domain: sys::virDomainPtr,
    kind: DomainEventKind,
    opaque: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: `opaque` is the box of `watch`, which lives until `free_sender`; only shared access here.
    let sender = unsafe { &*opaque.cast::<Sender>() };
    // SAFETY: the domain is valid for the time of the callback, and the name lives as long.
    let name = unsafe {
        let name = sys::virDomainGetName(domain);
        if name.is_null() {
            String::new()
        } else {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    };
    // Nobody listens any more when the connection is being closed.
    let _ = sender.send(DomainEvent { name, kind });
    0
}

unsafe extern "C" fn on_close(
    _connection: sys::virConnectPtr,
    reason: libc::c_int,
    opaque: *mut libc::c_void,
) {
    let reason = match reason as sys::virConnectCloseReason {
        // Our own doing.
        sys::VIR_CONNECT_CLOSE_REASON_CLIENT => return,
        sys::VIR_CONNECT_CLOSE_REASON_EOF => "the daemon closed it",
        sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE => "the daemon does not answer",
        _ => "the transport failed",
    };
    // SAFETY: `opaque` is the box of `watch_close`, which lives until `free_weak`; only shared access here.
    let sender = unsafe { &*opaque.cast::<WeakSender>() };
    let kind = DomainEventKind::ConnectionLost {
        reason: reason.to_owned(),
    };
    if let Some(sender) = sender.upgrade() {
        let _ = sender.send(DomainEvent {
            name: String::new(),
            kind,
        });
    }
}

unsafe extern "C" fn free_sender(opaque: *mut libc::c_void) {
    // SAFETY: made by `Box::into_raw` of the same type; libvirt calls this once and never uses the pointer again.
    drop(unsafe { Box::from_raw(opaque.cast::<Sender>()) });
}

unsafe extern "C" fn free_weak(opaque: *mut libc::c_void) {
    // SAFETY: as in `free_sender`.
    drop(unsafe { Box::from_raw(opaque.cast::<WeakSender>()) });
}

unsafe extern "C" fn ignore_error(_: *mut libc::c_void, _: sys::virErrorPtr) {}

/// Starts libvirt's event loop, once for the process. It must run before the first connection is made.
fn start_event_loop() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), Error>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // SAFETY: a static function without data; errors come back as values, so libvirt need not print them.
            unsafe { sys::virSetErrorFunc(std::ptr::null_mut(), Some(ignore_error)) };
            virt::event::event_register_default_impl()
                .map_err(|error| call("register the event loop", &error))?;
            std::thread::Builder::new()
                .name("libvirt-events".to_owned())
                .stack_size(256 * 1024)
                .spawn(|| {
                    loop {
                        if let Err(error) = virt::event::event_run_default_impl() {
                            // It fails when its poll does; there is nothing to repair, and no use in spinning.
                            tracing::error!("the libvirt event loop failed: {}", words(&error));
                            std::thread::sleep(std::time::Duration::from_millis(100));
                        }
                    }
                })
                .map_err(|error| Error::Call {
                    operation: "start the event loop",
                    message: error.to_string(),
                })?;
            Ok(())
        })
        .clone()
}

async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(Error::Call {
                operation,
                message: error.to_string(),
            })
        })
}

fn info(domain: &Domain) -> Result<DomainInfo, Error> {
    let fail = |error: virt::error::Error| call("describe the domain", &error);
    Ok(DomainInfo {
        name: domain.get_name().map_err(fail)?,
        uuid: domain.get_uuid_string().map_err(fail)?,
        id: domain.get_id(),
        machine: None,
    })
}

/// The machine type in a domain's XML as libvirt writes it.
fn machine_of(xml: &str) -> Option<&str> {
    let (_, os) = xml.split_once("<os")?;
    let (_, rest) = os.split_once(" machine='")?;
    Some(rest.split_once('\'')?.0)
}

fn words(error: &virt::error::Error) -> String {
    error.message().trim().to_owned()
}

fn call(operation: &'static str, error: &virt::error::Error) -> Error {
    Error::Call {
        operation,
        message: words(error),
    }
}

fn not_found(domain: &str, error: &virt::error::Error) -> Error {
    if error.code() == virt::error::ErrorNumber::NoDomain {
        Error::NoDomain(domain.to_owned())
    } else {
        call("look a domain up", error)
    }
}

fn event_kind(event: libc::c_int, detail: libc::c_int) -> DomainEventKind {
    match event as sys::virDomainEventType {
        sys::VIR_DOMAIN_EVENT_DEFINED => DomainEventKind::Defined,
        sys::VIR_DOMAIN_EVENT_UNDEFINED => DomainEventKind::Undefined,
        sys::VIR_DOMAIN_EVENT_STARTED => DomainEventKind::Started,
        sys::VIR_DOMAIN_EVENT_SUSPENDED => DomainEventKind::Suspended {
            reason: match detail as sys::virDomainEventSuspendedDetailType {
                sys::VIR_DOMAIN_EVENT_SUSPENDED_PAUSED => PauseReason::User,
                sys::VIR_DOMAIN_EVENT_SUSPENDED_IOERROR => PauseReason::IoError,
                sys::VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG => PauseReason::Watchdog,
                _ => PauseReason::Other,
            },
        },
        sys::VIR_DOMAIN_EVENT_RESUMED => DomainEventKind::Resumed,
        sys::VIR_DOMAIN_EVENT_SHUTDOWN => DomainEventKind::Shutdown,
        sys::VIR_DOMAIN_EVENT_PMSUSPENDED => DomainEventKind::PmSuspended,
        sys::VIR_DOMAIN_EVENT_CRASHED => DomainEventKind::Crashed,
        sys::VIR_DOMAIN_EVENT_STOPPED => DomainEventKind::Stopped {
            reason: match detail as sys::virDomainEventStoppedDetailType {
                sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => StopReason::Shutdown,
                sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => StopReason::Destroyed,
                sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => StopReason::Crashed,
                sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => StopReason::Migrated,
                sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => StopReason::Saved,
                sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => StopReason::Failed,
                _ => StopReason::Unknown,
            },
        },
        _ => DomainEventKind::Other(event),
    }
}

fn run_state(state: sys::virDomainState, reason: i32) -> RunState {
    match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => RunState::Running,
        sys::VIR_DOMAIN_PAUSED => RunState::Paused(match reason as sys::virDomainPausedReason {
            sys::VIR_DOMAIN_PAUSED_USER | sys::VIR_DOMAIN_PAUSED_STARTING_UP => PauseReason::User,
            sys::VIR_DOMAIN_PAUSED_IOERROR => PauseReason::IoError,
            sys::VIR_DOMAIN_PAUSED_WATCHDOG => PauseReason::Watchdog,
            _ => PauseReason::Other,
        }),
        sys::VIR_DOMAIN_SHUTDOWN => RunState::ShuttingDown,
        sys::VIR_DOMAIN_PMSUSPENDED => RunState::Suspended,
        sys::VIR_DOMAIN_CRASHED => RunState::Crashed,
        sys::VIR_DOMAIN_SHUTOFF => RunState::Shutoff(match reason as sys::virDomainShutoffReason {
            sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => StopReason::Shutdown,
            sys::VIR_DOMAIN_SHUTOFF_DESTROYED => StopReason::Destroyed,
            sys::VIR_DOMAIN_SHUTOFF_CRASHED => StopReason::Crashed,
            sys::VIR_DOMAIN_SHUTOFF_MIGRATED => StopReason::Migrated,
            sys::VIR_DOMAIN_SHUTOFF_SAVED => StopReason::Saved,
            sys::VIR_DOMAIN_SHUTOFF_FAILED | sys::VIR_DOMAIN_SHUTOFF_DAEMON => StopReason::Failed,
            _ => StopReason::Unknown,
        }),
        _ => RunState::Unknown,
    }
}
