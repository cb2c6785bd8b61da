//! `proto/service-config.json`, the retry policy for clients in other languages, against the descriptors of the API:
//! it names only what exists, leaves nothing out, and repeats nothing that must not be repeated.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet, MethodDescriptorProto};
use serde_json::{Value, json};
use tidewall_proto::v1::Effect;
use tidewall_proto::{Declared, Method};

const PACKAGE: &str = "tidewall.v1";
/// What has the same effect however often it is sent, by what it says.
const IDEMPOTENT: [&str; 2] = ["LogOut", "RevokeSession"];

fn config() -> Value {
    serde_json::from_str(include_str!("../../../proto/service-config.json")).unwrap()
}

struct Api {
    /// By (service with package, method).
    methods: BTreeMap<(String, String), MethodDescriptorProto>,
    /// By name with package and a leading dot, as descriptors refer to them.
    messages: BTreeMap<String, DescriptorProto>,
}

fn api() -> Api {
    let files = FileDescriptorSet::decode(tidewall_proto::DESCRIPTORS).unwrap().file;
    let (mut methods, mut messages) = (BTreeMap::new(), BTreeMap::new());
    for file in files.into_iter().filter(|file| file.package() == PACKAGE) {
        for service in file.service {
            let name = format!("{PACKAGE}.{}", service.name());
            methods.extend(service.method.into_iter().map(|m| ((name.clone(), m.name().to_owned()), m)));
        }
        messages.extend(file.message_type.into_iter().map(|m| (format!(".{PACKAGE}.{}", m.name()), m)));
    }
    assert!(methods.len() >= 20, "the descriptors were not read: {:?}", methods.keys());
    Api { methods, messages }
}

/// Each (service, method or "" for all others of it) with the part of the file that is for it.
fn entries(config: &Value) -> Vec<((String, String), &Value)> {
    let mut entries = Vec::new();
    for part in config["methodConfig"].as_array().unwrap() {
        for name in part["name"].as_array().unwrap() {
            let text = |key: &str| name[key].as_str().unwrap_or_default().to_owned();
            entries.push(((text("service"), text("method")), part));
        }
    }
    entries
}

fn seconds(value: &Value) -> f64 {
    value.as_str().and_then(|text| text.strip_suffix('s')).unwrap().parse().unwrap()
}

/// Whether a request carries a request id, or is a list of things that do.
fn carries_id(api: &Api, message: &DescriptorProto) -> bool {
    message.field.iter().any(|field| {
        field.name() == "request_id"
            || api.messages.get(field.type_name()).is_some_and(|inner| {
                field.label() == prost_types::field_descriptor_proto::Label::Repeated
                    && carries_id(api, inner)
            })
    })
}

/// The file as it follows from the policies that the methods declare.
fn generated() -> Value {
    let names = |of: &dyn Fn(&Declared) -> bool| -> Vec<Value> {
        let methods = Method::ALL.into_iter().map(Method::declared).filter(|declared| of(declared));
        methods.map(|declared| json!({ "service": declared.service, "method": declared.name })).collect()
    };
    let repeated = |declared: &Declared| declared.policy.effect != Effect::Order && !declared.streams;
    let orders: BTreeSet<&str> = Method::ALL
        .into_iter()
        .map(Method::declared)
        .filter(|declared| !repeated(declared) && !declared.policy.transfers)
        .map(|declared| declared.service)
        .collect();
    let orders: Vec<Value> = orders.into_iter().map(|service| json!({ "service": service })).collect();
    json!({
        "methodConfig": [
            {
                "name": names(&repeated),
                "waitForReady": true,
                "timeout": "60s",
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
                }
            },
            {
                "name": names(&|declared| declared.policy.transfers),
                "waitForReady": true,
                "timeout": "3600s"
            },
            { "name": orders, "waitForReady": true, "timeout": "60s" }
        ],
        "retryThrottling": { "maxTokens": 1000, "tokenRatio": 0.1 }
    })
}

#[test]
fn it_follows_from_the_policies_of_the_methods() {
    let generated = generated();
    if config() != generated {
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("service-config.json");
        std::fs::write(&file, serde_json::to_string_pretty(&generated).unwrap() + "\n").unwrap();
        panic!("proto/service-config.json is not what the .proto files say: copy {} over it", file.display());
    }
}

#[test]
fn every_name_in_it_exists_and_stands_there_once() {
    let (config, api) = (config(), api());
    let services: BTreeSet<_> = api.methods.keys().map(|(service, _)| service.clone()).collect();
    let mut seen = BTreeSet::new();
    for (name, _) in entries(&config) {
        let exists =
            if name.1.is_empty() { services.contains(&name.0) } else { api.methods.contains_key(&name) };
        assert!(exists, "{name:?} is not in the .proto files");
        assert!(seen.insert(name.clone()), "{name:?} is there twice");
    }
}

#[test]
fn every_method_of_the_api_is_covered_and_may_take_as_long_as_gateways_honour() {
    let (config, api) = (config(), api());
    let entries: BTreeMap<_, _> = entries(&config).into_iter().collect();
    for (name, method) in &api.methods {
        let default = (name.0.clone(), String::new());
        let part = entries.get(name).or_else(|| entries.get(&default));
        let part = part.unwrap_or_else(|| panic!("{name:?} is not covered"));
        let timeout = seconds(&part["timeout"]);
        let streams = method.client_streaming() || method.server_streaming();
        let longest = if streams || name.1 == "ChangeReplicas" { 3600.0 } else { 60.0 };
        // A bound above the callers' own deadlines, and no shorter: some libraries count it from too early.
        assert_eq!(timeout, longest, "{name:?}");
        // Gateways that restart are waited for, within the deadline.
        assert_eq!(part["waitForReady"], true, "{name:?}");
    }
}

#[test]
fn only_what_does_nothing_twice_is_repeated_and_only_after_codes_that_allow_it() {
    let (config, api) = (config(), api());
    let entries: BTreeMap<_, _> = entries(&config).into_iter().collect();
    let mut repeated = BTreeSet::new();
    for (name, part) in entries {
        let Some(policy) = part.get("retryPolicy") else { continue };
        let method =
            api.methods.get(&name).unwrap_or_else(|| panic!("{name:?}: retries are named by method"));
        assert!(!method.client_streaming() && !method.server_streaming(), "{name:?} streams");
        let reads = ["Get", "List", "Find", "Search"].iter().any(|verb| name.1.starts_with(verb));
        let idempotent = IDEMPOTENT.contains(&name.1.as_str());
        let carries_id = carries_id(&api, &api.messages[method.input_type()]);
        assert!(reads || idempotent || carries_id, "{name:?} has no request id");
        let codes: BTreeSet<_> = policy["retryableStatusCodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|code| code.as_str().unwrap())
            .collect();
        assert_eq!(codes, BTreeSet::from(["UNAVAILABLE", "RESOURCE_EXHAUSTED"]), "{name:?}");
        // What gRFC A6 asks for; libraries cut more than five attempts to five.
        let attempts = policy["maxAttempts"].as_u64().unwrap();
        assert!((2..=5).contains(&attempts), "{name:?}: {attempts}");
        let (first, longest) = (seconds(&policy["initialBackoff"]), seconds(&policy["maxBackoff"]));
        assert!(first > 0.0 && first <= longest && longest < seconds(&part["timeout"]), "{name:?}");
        assert!(policy["backoffMultiplier"].as_f64().unwrap() > 1.0, "{name:?}");
        repeated.insert(name.1);
    }
    // Every request with an id may be repeated, so the file must say so.
    for (name, method) in &api.methods {
        if !method.client_streaming() && carries_id(&api, &api.messages[method.input_type()]) {
            assert!(repeated.contains(&name.1), "{name:?} carries an id and is not repeated");
        }
    }
    assert!(repeated.contains("BuyTickets") && repeated.contains("BatchBuyTickets"), "{repeated:?}");
}

#[test]
fn retries_are_throttled_as_grfc_a6_allows() {
    let config = config();
    let throttling = &config["retryThrottling"];
    let (max, ratio) =
        (throttling["maxTokens"].as_f64().unwrap(), throttling["tokenRatio"].as_f64().unwrap());
    assert!(max > 0.0 && max <= 1000.0 && ratio > 0.0, "{throttling}");
}
