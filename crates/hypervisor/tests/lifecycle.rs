//! One story on both hypervisors: libvirt's in-process test driver (no daemon needed) and the fake.

use std::time::Duration;

use berth_hypervisor::fake::Fake;
use berth_hypervisor::libvirt::Libvirt;
use berth_hypervisor::{
    DomainEventKind as Kind, Error, Events, Hypervisor, PauseReason, RunState, StopReason,
};

fn xml(name: &str, uuid: &str) -> String {
    format!(
        "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>8192</memory><vcpu>1</vcpu>\
         <os><type>hvm</type></os></domain>"
    )
}

/// The next event of this domain.
async fn next(events: &mut Events, name: &str) -> Kind {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv())
            .await
            .expect("an event in time");
        let event = event.expect("the connection lives");
        if event.name == name {
            return event.kind;
        }
    }
}

async fn story(hypervisor: impl Hypervisor, mut events: Events, name: &str, uuid: &str) {
    assert_eq!(
        hypervisor.lookup(uuid).await,
        Err(Error::NoDomain(uuid.to_owned()))
    );
    let info = hypervisor
        .define_and_start(&xml(name, uuid))
        .await
        .expect("defined and started");
    assert_eq!(
        (info.name.as_str(), info.uuid.as_str(), info.id.is_some()),
        (name, uuid, true)
    );
    assert_eq!(next(&mut events, name).await, Kind::Defined);
    assert_eq!(next(&mut events, name).await, Kind::Started);
    assert_eq!(hypervisor.state(uuid).await, Ok(RunState::Running));

    hypervisor.suspend(uuid).await.expect("paused");
    assert_eq!(
        next(&mut events, name).await,
        Kind::Suspended {
            reason: PauseReason::User
        }
    );
    assert_eq!(
        hypervisor.state(uuid).await,
        Ok(RunState::Paused(PauseReason::User))
    );
    hypervisor.resume(uuid).await.expect("resumed");
    assert_eq!(next(&mut events, name).await, Kind::Resumed);

    hypervisor.destroy(uuid).await.expect("destroyed");
    assert_eq!(
        next(&mut events, name).await,
        Kind::Stopped {
            reason: StopReason::Destroyed
        }
    );
    assert_eq!(
        hypervisor.state(uuid).await,
        Ok(RunState::Shutoff(StopReason::Destroyed))
    );
    hypervisor
        .destroy(uuid)
        .await
        .expect("destroying what does not run is no error");
    hypervisor.undefine(uuid).await.expect("undefined");
    assert_eq!(next(&mut events, name).await, Kind::Undefined);
    assert_eq!(
        hypervisor.lookup(uuid).await,
        Err(Error::NoDomain(uuid.to_owned()))
    );
}

#[tokio::test]
async fn libvirt_tells_every_step_of_a_life() {
    let (libvirt, events) = Libvirt::open("test:///default")
        .await
        .expect("the test driver");
    story(
        libvirt,
        events,
        "berth-life",
        "5a1e0c1e-0000-4000-8000-000000000001",
    )
    .await;
}

#[tokio::test]
async fn the_fake_tells_the_same_story() {
    let (fake, events) = Fake::new().connect();
    story(
        fake,
        events,
        "berth-life",
        "5a1e0c1e-0000-4000-8000-000000000002",
    )
    .await;
}

#[tokio::test]
async fn the_power_button_ends_a_guest() {
    let (libvirt, mut events) = Libvirt::open("test:///default")
        .await
        .expect("the test driver");
    let (name, uuid) = ("berth-button", "5a1e0c1e-0000-4000-8000-000000000003");
    libvirt
        .define_and_start(&xml(name, uuid))
        .await
        .expect("started");
    // The test driver has no ACPI flag; the plain request is the same event.
    if libvirt.shutdown(uuid).await.is_err() {
        libvirt.destroy(uuid).await.expect("destroyed");
    }
    loop {
        if let Kind::Stopped { reason } = next(&mut events, name).await {
            assert!(matches!(
                reason,
                StopReason::Shutdown | StopReason::Destroyed
            ));
            break;
        }
    }
    libvirt.undefine(uuid).await.expect("undefined");
}

#[tokio::test]
async fn events_end_with_the_connection_and_another_can_be_opened() {
    for _ in 0..20 {
        let (libvirt, mut events) = Libvirt::open("test:///default")
            .await
            .expect("the test driver");
        libvirt.close().await;
        // The callbacks' senders are freed, so the stream ends instead of hanging.
        let end = tokio::time::timeout(Duration::from_secs(10), async {
            while events.recv().await.is_some() {}
        })
        .await;
        assert!(end.is_ok(), "a callback was not freed");
    }
}

#[tokio::test]
async fn refusals_keep_libvirts_words() {
    let (libvirt, _events) = Libvirt::open("test:///default")
        .await
        .expect("the test driver");
    let error = libvirt
        .define("<domain type='test'><memory>1</memory></domain>")
        .await
        .expect_err("no name");
    assert!(
        matches!(&error, Error::Definition(text) if !text.is_empty()),
        "{error}"
    );
    let error = Libvirt::open("test:///no/such/file.xml")
        .await
        .map(drop)
        .expect_err("no such driver");
    assert!(
        error.to_string().contains("test:///no/such/file.xml"),
        "{error}"
    );
}
