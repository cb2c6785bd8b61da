//! Purchases in bulk.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidewall_sdk::{Code, Error, NotDecided, Reason, RequestId, Stop, api};

use crate::fake::{Act, Gateway, Region, status};
use crate::{MS, client, one, patient};

fn batch(count: usize) -> api::BatchBuyTicketsRequest {
    let purchase = |number| api::BatchPurchase {
        buyer: format!("buyer-{number}"),
        tier_id: "ga".into(),
        quantity: 1,
        request_id: String::new(),
    };
    api::BatchBuyTicketsRequest {
        parent: "regions/north/events/gala".into(),
        purchases: (0..count).map(purchase).collect(),
    }
}

#[tokio::test]
async fn only_what_is_not_decided_is_sent_again_and_with_its_own_id() {
    let (region, gateway) = one();
    region.will([
        Act::LeaveHalf(Code::ResourceExhausted, "OVERLOADED"),
        Act::LeaveHalf(Code::DeadlineExceeded, "OUTCOME_UNKNOWN"),
    ]);
    let client = client(&[&gateway], patient());
    let items = client.batch_buy_tickets(batch(8)).await.unwrap();
    let ids: BTreeSet<_> = items.iter().map(|item| item.request_id).collect();
    assert_eq!(ids.len(), 8);
    assert!(items.iter().all(|item| item.result.is_ok()), "{items:?}");
    assert_eq!(*region.executed.lock(), 8);
    let sizes: Vec<_> = region.ids().iter().map(|ids| ids.split(' ').count()).collect();
    assert_eq!(sizes, [8, 4, 2]);
    assert_eq!(client.unfinished(), []);
}

#[tokio::test]
async fn a_lost_batch_is_repeated_at_another_gateway_and_bought_once() {
    let region = Arc::new(Region::default());
    let mut gateways = [Gateway::start(0, &region), Gateway::start(1, &region)];
    region.will([Act::Swallow]);
    let client = client(&[&gateways[0], &gateways[1]], patient());
    let call = tokio::spawn(async move { client.batch_buy_tickets(batch(5)).await });
    region.stuck.notified().await;
    let first = region.arrivals.lock()[0].gateway;
    gateways[first].kill();
    let items = call.await.unwrap().unwrap();
    assert!(items.iter().all(|item| item.result.is_ok()), "{items:?}");
    assert_eq!(*region.executed.lock(), 5);
    let sent = region.ids();
    assert_eq!(sent[0], sent[1]);
}

#[tokio::test]
async fn each_purchase_ends_in_its_own_way() {
    let (region, gateway) = one();
    let mut request = batch(4);
    let ids: Vec<_> = (0..4).map(|_| RequestId::fresh()).collect();
    for (purchase, id) in request.purchases.iter_mut().zip(&ids) {
        purchase.request_id = id.to_string();
    }
    let no = api::Rejection {
        code: Code::FailedPrecondition.into(),
        reason: "QUOTA_EXCEEDED".into(),
        message: "too many".into(),
    };
    region.decided.lock().insert(ids[2].to_string(), Err(no));
    // The second and the fourth are lost in the first attempt; the fourth again in the second.
    let lost = || Act::LeaveHalf(Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    region.will([lost(), lost(), Act::Fail(status(Code::PermissionDenied, "ROLE_REQUIRED", None))]);
    let client = client(&[&gateway], patient());
    let items = client.batch_buy_tickets(request).await.unwrap();
    assert!(items[0].result.is_ok() && items[1].result.is_ok(), "{items:?}");
    assert!(matches!(&items[2].result, Err(Error::Decided { .. })), "{items:?}");
    assert_eq!(items[2].result.as_ref().unwrap_err().reason(), Some(&Reason::QuotaExceeded));
    let last = items[3].result.as_ref().unwrap_err();
    assert!(matches!(last, Error::Unknown { stop: Stop::Refused, .. }), "{last:?}");
    let open: Vec<_> = client.unfinished().iter().map(|sent| sent.request_id).collect();
    assert_eq!(open, [ids[3]]);
}

#[tokio::test]
async fn a_quick_no_to_a_purchase_in_doubt_is_believed_only_with_a_receipt() {
    let (region, gateway) = one();
    let lost = || Act::LeaveHalf(Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    let client = client(&[&gateway], patient());
    region.will([lost(), Act::Reject("SOLD_OUT", true)]);
    let items = client.batch_buy_tickets(batch(4)).await.unwrap();
    assert!(items[0].result.is_ok() && items[2].result.is_ok(), "{items:?}");
    for item in [&items[1], &items[3]] {
        assert!(matches!(item.result, Err(Error::Decided { .. })), "{item:?}");
    }
    // Without one, it goes on asking while there is time, and then does not know.
    region.will([lost()]);
    region.will((0..1000).map(|_| Act::Reject("SOLD_OUT", false)));
    let items = client.within(700 * MS).batch_buy_tickets(batch(4)).await.unwrap();
    for item in [&items[1], &items[3]] {
        let error = item.result.as_ref().unwrap_err();
        assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
        assert_eq!(error.reason(), Some(&Reason::SoldOut));
    }
    assert_eq!(client.unfinished().len(), 2);
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_was_not_decided() {
    let (region, gateway) = one();
    region.will([Act::Fail(status(Code::PermissionDenied, "ROLE_REQUIRED", None))]);
    let client = client(&[&gateway], patient());
    for item in client.batch_buy_tickets(batch(3)).await.unwrap() {
        let error = item.result.unwrap_err();
        assert!(matches!(error, Error::NotDecided { .. }), "{error:?}");
        assert_eq!(error.reason(), Some(&Reason::RoleRequired));
    }
    assert_eq!(client.unfinished(), []);
}

#[tokio::test]
async fn a_batch_without_an_answer_leaves_every_purchase_unknown() {
    let (region, gateway) = one();
    region.will([Act::Swallow]);
    let client = client(&[&gateway], patient()).within(400 * MS);
    let items = client.batch_buy_tickets(batch(3)).await.unwrap();
    assert!(items.iter().all(|item| matches!(item.result, Err(Error::Unknown { .. }))), "{items:?}");
    assert_eq!(client.unfinished().len(), 3);
}

#[tokio::test]
async fn two_purchases_with_one_id_are_refused_before_anything_is_sent() {
    let (region, gateway) = one();
    let client = client(&[&gateway], patient());
    let mut request = batch(2);
    let id = RequestId::fresh();
    for purchase in &mut request.purchases {
        purchase.request_id = id.to_string();
    }
    let error = client.batch_buy_tickets(request).await.unwrap_err();
    assert!(matches!(&error, Error::NotDecided { why: NotDecided::Invalid(why), .. } if why.contains("[1]")));
    assert_eq!((region.ids().len(), client.unfinished().len()), (0, 0));
}
