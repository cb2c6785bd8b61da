//! Export and import of a region: what comes back is what was there, and a damaged file changes nothing.

use tidewall_e2e::client::{Session, event_of, request_id, tier};
use tidewall_proto::v1::*;
use tonic::Status;

use crate::{alone, buyer, shared, someone};

async fn export(operator: &Session, region: &str) -> Vec<u8> {
    let request = ExportRegionRequest { name: region.into() };
    let mut stream = operator.operator().export_region(operator.request(request)).await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        file.extend_from_slice(&part.chunk);
    }
    assert!(!file.is_empty());
    file
}

async fn import(
    operator: &Session,
    region: &str,
    replace: bool,
    file: &[u8],
) -> Result<ImportRegionResponse, Status> {
    let mut parts = vec![ImportRegionRequest { name: region.into(), replace, chunk: Default::default() }];
    parts.extend(file.chunks(64 << 10).map(|part| ImportRegionRequest {
        name: String::new(),
        replace: false,
        chunk: part.to_vec().into(),
    }));
    let request = operator.request(tokio_stream::iter(parts));
    operator.operator().import_region(request).await.map(tonic::Response::into_inner)
}

async fn status(operator: &Session, region: &str) -> RegionStatus {
    let request = GetRegionStatusRequest { name: region.into() };
    let response = operator.operator().get_region_status(operator.request(request)).await.unwrap();
    response.into_inner().region.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_comes_back_from_its_export_and_a_damaged_file_is_refused() {
    // The import is a pause for its region; the last region belongs to this test alone.
    let _alone = alone().await;
    let cluster = shared().await;
    let operator = cluster.session(&someone("operator"), &["operator"]).unwrap();
    let organiser = cluster.session(&someone("organiser"), &["organiser"]).unwrap();
    let (_, alice) = buyer().await;
    let region = organiser.region_names().await.unwrap().pop().unwrap();

    let event = organiser.create_event(&region, event_of(vec![tier("ga", 50)])).await.unwrap().name;
    let id = request_id();
    let bought = alice.buy(&event, "ga", 3, &id).await.unwrap();
    alice.hold(&event, "ga", 2).await.unwrap();
    let (row, tickets) =
        (alice.event(&event).await.unwrap(), organiser.tickets_of(&event, "*").await.unwrap());
    let file = export(&operator, &region).await;
    let first = status(&operator, &region).await;

    // What happens after the export is not in it.
    alice.buy(&event, "ga", 5, &request_id()).await.unwrap();
    let later = alice.event(&event).await.unwrap();
    assert_ne!(later, row);

    // Not over what is there, unless told to.
    let refused = import(&operator, &region, false, &file).await.unwrap_err();
    assert!(refused.message().contains("replace"), "{refused:?}");
    assert_eq!(alice.event(&event).await.unwrap(), later);

    // One flipped bit anywhere, or a missing end: refused, and nothing changes.
    for position in [0, file.len() / 3, file.len() / 2, file.len() - 1] {
        let mut damaged = file.clone();
        damaged[position] ^= 0x10;
        let refused = import(&operator, &region, true, &damaged).await;
        let refused = refused.expect_err(&format!("a file with a flipped bit at {position} was imported"));
        assert!(!refused.message().is_empty(), "{refused:?}");
        assert_eq!(alice.event(&event).await.unwrap(), later, "after a flipped bit at {position}");
    }
    for length in [0, 1, file.len() / 2, file.len() - 1] {
        let refused = import(&operator, &region, true, &file[..length]).await;
        refused.expect_err(&format!("{length} of {} bytes were imported", file.len()));
        assert_eq!(alice.event(&event).await.unwrap(), later, "after {length} bytes");
    }
    assert_eq!(status(&operator, &region).await.incarnation, first.incarnation);

    // The whole file, over what is there.
    let restored = import(&operator, &region, true, &file).await.unwrap();
    assert!(restored.incarnation > first.incarnation, "{restored:?} after incarnation {}", first.incarnation);
    assert_eq!(restored.digest.len(), 32, "{restored:?}");
    assert_eq!(alice.event(&event).await.unwrap(), row);
    assert_eq!(organiser.tickets_of(&event, "*").await.unwrap(), tickets);
    // Outcomes are part of it: repeating the purchase repeats its answer and sells nothing.
    assert_eq!(alice.buy(&event, "ga", 3, &id).await.unwrap().purchase, bought.purchase);
    assert_eq!(alice.event(&event).await.unwrap(), row);
    // And the region goes on.
    let fresh = alice.buy(&event, "ga", 1, &request_id()).await.unwrap();
    assert_eq!(fresh.receipt.unwrap().incarnation, restored.incarnation);

    // Exporting and importing again yields the same rows.
    let second = export(&operator, &region).await;
    let before = (alice.event(&event).await.unwrap(), organiser.tickets_of(&event, "*").await.unwrap());
    import(&operator, &region, true, &second).await.unwrap();
    let after = (alice.event(&event).await.unwrap(), organiser.tickets_of(&event, "*").await.unwrap());
    assert_eq!(after, before);

    // Buyers have no business here.
    let refused =
        alice.operator().export_region(alice.request(ExportRegionRequest { name: region.clone() })).await;
    assert_eq!(refused.map(|_| ()).map_err(|status| status.code()), Err(tonic::Code::PermissionDenied));
    let refused = import(&alice, &region, true, &file).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}
