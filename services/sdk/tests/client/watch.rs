//! Watching goes on behind the last place, whatever ends a stream, and ends where it cannot.

use super::*;

fn place(index: u64) -> api::Place {
    api::Place { incarnation: 1, index, changes: u32::MAX }
}

/// An answer with one change.
fn told(index: u64) -> Result<api::WatchResponse, Status> {
    let change = api::Change { place: Some(place(index)), ..Default::default() };
    Ok(api::WatchResponse { changes: vec![change], place: Some(place(index)), ..Default::default() })
}

fn gala() -> api::WatchRequest {
    api::WatchRequest { parent: "regions/north/events/gala".into(), ..Default::default() }
}

#[tokio::test]
async fn a_watch_goes_on_behind_the_last_place_at_any_gateway() {
    let (region, mut first) = one();
    let second = Gateway::start(1, &region);
    region.told.lock().extend([
        vec![told(1), told(2)],
        vec![told(3), Err(status(Code::Unauthenticated, "TOKEN_INVALID", None))],
        vec![Err(status(Code::ResourceExhausted, "NOT_READ", None))],
        vec![told(4), Err(Status::unavailable("connection reset"))],
    ]);
    region.will([Act::Serve, Act::Fail(status(Code::Unavailable, "REGION_UNAVAILABLE", Some(MS)))]);
    let mut watch = client(&[&first, &second], patient()).watch(gala());
    assert_eq!(watch.place(), None);
    for index in 1..=3 {
        assert_eq!(watch.next().await.unwrap().changes[0].place, Some(place(index)));
    }
    first.kill();
    assert_eq!(watch.next().await.unwrap().place, Some(place(4)));
    assert_eq!(watch.place(), Some(place(4)));
    let asked: Vec<_> = region.watched.lock().iter().map(|request| request.after).collect();
    let expected = [None, Some(place(2)), Some(place(3)), Some(place(3))];
    assert_eq!(asked[..4], expected);
    let arrivals = region.arrivals.lock();
    assert!(
        arrivals.iter().all(|arrival| !arrival.timeout.is_empty() && arrival.authorization == "Bearer alice")
    );
}

#[tokio::test]
async fn what_is_gone_or_not_allowed_ends_a_watch() {
    let (region, gateway) = one();
    region.told.lock().push_back(vec![told(1), Err(status(Code::OutOfRange, "PLACE_GONE", None))]);
    let client = client(&[&gateway], patient());
    let mut watch = client.watch(gala());
    watch.next().await.unwrap();
    let error = watch.next().await.unwrap_err();
    assert_eq!(error.reason(), Some(&Reason::PlaceGone));
    assert!(matches!(error, Error::NotDecided { why: NotDecided::Stopped { stop: Stop::Refused, .. }, .. }));
    region.will([Act::Fail(status(Code::PermissionDenied, "NOT_YOUR_CHANGES", None))]);
    let error = client.watch(gala()).next().await.unwrap_err();
    assert_eq!(error.reason(), Some(&Reason::NotYourChanges));
}

#[tokio::test]
async fn a_state_is_asked_for_as_it_is_and_not_behind_a_place() {
    let (region, gateway) = one();
    region.told.lock().extend([vec![told(1)], vec![told(2)]]);
    let state = api::WatchRequest { mode: api::WatchMode::State.into(), ..gala() };
    let mut watch = client(&[&gateway], patient()).watch(state.clone());
    for _ in 0..2 {
        watch.next().await.unwrap();
    }
    assert_eq!(*region.watched.lock(), [state.clone(), state]);
    assert_eq!(watch.place(), None);
}
