//! The shape of the public API: rules of google.aip.dev that `buf lint` does not know, and our own. Where Tidewall does otherwise on
//! purpose, docs/API.md says so (*Shape*).
#![allow(clippy::unwrap_used)]

use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value,
};

const PACKAGE: &str = "tidewall.v1";

/// An option of a descriptor, by the full name of its extension.
fn option(pool: &DescriptorPool, options: &DynamicMessage, name: &str) -> Option<Value> {
    let extension = pool.get_extension_by_name(name).unwrap_or_else(|| panic!("there is no option {name}"));
    options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
}

fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field).map(|value| value.into_owned());
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// `field_behavior` of a field, as numbers of google/api/field_behavior.proto.
fn behaviors(field: &FieldDescriptor) -> Vec<i32> {
    let option = option(field.parent_pool(), &field.options(), "google.api.field_behavior");
    let list = option.and_then(|value| value.as_list().map(<[Value]>::to_vec)).unwrap_or_default();
    list.iter().filter_map(Value::as_enum_number).collect()
}

const REQUIRED: i32 = 2;
const IDENTIFIER: i32 = 8;

/// The field at a path such as `event.name`.
fn at(message: &MessageDescriptor, path: &str) -> Option<FieldDescriptor> {
    match path.split_once('.') {
        None => message.get_field_by_name(path),
        Some((outer, inner)) => at(message.get_field_by_name(outer)?.kind().as_message()?, inner),
    }
}

/// Kinds of resources that the package has.
fn resources(pool: &DescriptorPool) -> Vec<String> {
    let messages = pool.all_messages().filter(|message| message.package_name() == PACKAGE);
    let resource = |message: MessageDescriptor| {
        let option = option(pool, &message.options(), "google.api.resource")?;
        Some(text(option.as_message()?, "type"))
    };
    messages.filter_map(resource).collect()
}

/// What is wrong with a field of any message.
fn field_faults(field: &FieldDescriptor, kinds: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let (name, kind) = (field.name(), field.kind());
    let of = kind.as_message().map(|message| message.full_name().to_owned()).unwrap_or_default();
    if of == "google.protobuf.Timestamp" && !name.ends_with("_time") {
        faults.push(format!("{}: a time is called …_time", field.full_name()));
    }
    if ["_at", "_ms", "_seconds", "_secs", "_millis"].iter().any(|end| name.ends_with(end)) {
        faults.push(format!("{}: a time is a Timestamp or a Duration", field.full_name()));
    }
    let reference = option(field.parent_pool(), &field.options(), "google.api.resource_reference");
    if let Some(reference) = &reference {
        let reference = reference.as_message().unwrap();
        let kind = text(reference, "type") + &text(reference, "child_type");
        if kind != "*" && !kinds.contains(&kind) {
            faults.push(format!("{}: there is no resource {kind}", field.full_name()));
        }
    }
    let request = field.parent_message().name().ends_with("Request");
    if request && behaviors(field).is_empty() {
        faults.push(format!("{}: does not say whether it is needed", field.full_name()));
    }
    if request && ["name", "parent"].contains(&name) && reference.is_none() {
        faults.push(format!("{}: does not say what it names", field.full_name()));
    }
    if name == "request_id" && request && !behaviors(field).contains(&REQUIRED) {
        faults.push(format!("{}: is needed", field.full_name()));
    }
    faults
}

/// What is wrong with a list.
fn list_faults(method: &MethodDescriptor) -> Vec<String> {
    let (input, output) = (method.input(), method.output());
    let field = |message: &MessageDescriptor, name: &str, kind: Kind| {
        message.get_field_by_name(name).is_some_and(|field| field.kind() == kind)
    };
    let paged = field(&input, "page_size", Kind::Int32)
        && field(&input, "page_token", Kind::String)
        && field(&output, "next_page_token", Kind::String);
    let items =
        output.fields().filter(|field| field.is_list() && field.kind().as_message().is_some()).count();
    let mut faults = Vec::new();
    if !paged {
        faults.push(format!("{}: a list has pages", method.full_name()));
    }
    if items != 1 {
        faults.push(format!("{}: a list is of one kind of thing", method.full_name()));
    }
    faults
}

/// What is wrong with the HTTP request that stands for a method.
fn http_faults(method: &MethodDescriptor) -> Vec<String> {
    let (pool, name, input) = (method.parent_pool(), method.full_name(), method.input());
    let Some(rule) = option(pool, &method.options(), "google.api.http") else {
        let streams = method.is_client_streaming();
        return (!streams).then(|| format!("{name}: no HTTP request stands for it")).into_iter().collect();
    };
    let rule = rule.as_message().unwrap();
    let (verb, path) = ["get", "put", "post", "delete", "patch"]
        .into_iter()
        .map(|verb| (verb, text(rule, verb)))
        .find(|(_, path)| !path.is_empty())
        .unwrap_or_default();
    let mut faults = Vec::new();
    if !path.starts_with("/v1/") {
        faults.push(format!("{name}: its path is not below /v1/"));
    }
    let variables: Vec<String> =
        path.split('{').skip(1).filter_map(|rest| rest.split(['=', '}']).next().map(str::to_owned)).collect();
    for variable in variables.iter().filter(|variable| at(&input, variable).is_none()) {
        faults.push(format!("{name}: its path names {variable}, which it has not"));
    }
    let body = text(rule, "body");
    if !["", "*"].contains(&body.as_str()) && at(&input, &body).is_none() {
        faults.push(format!("{name}: its body is {body}, which it has not"));
    }
    let policy = option(pool, &method.options(), "tidewall.v1.policy");
    let policy = policy.as_ref().and_then(Value::as_message).cloned();
    let reads = policy.as_ref().is_some_and(|policy| {
        policy.get_field_by_name("effect").is_some_and(|effect| effect.as_enum_number() == Some(1))
    });
    // What is in a URL is in logs: secrets and e-mails are in bodies.
    let private = input.fields().any(|field| ["email", "password", "refresh_token"].contains(&field.name()));
    if (verb == "get") != (reads && !private) {
        faults.push(format!("{name}: GET is for reads without anything private, and for them all"));
    }
    let resource = policy.map(|policy| text(&policy, "resource")).unwrap_or_default();
    let named = resource.is_empty() || resource == "refresh_token" || variables.contains(&resource);
    if !named {
        faults.push(format!("{name}: its path does not name {resource}"));
    }
    faults
}

fn faults(pool: &DescriptorPool) -> Vec<String> {
    let (mut faults, kinds) = (Vec::new(), resources(pool));
    for message in pool.all_messages().filter(|message| message.package_name() == PACKAGE) {
        for field in message.fields() {
            faults.extend(field_faults(&field, &kinds));
        }
        let is_resource = option(pool, &message.options(), "google.api.resource").is_some();
        let name = message.get_field_by_name("name");
        if is_resource && name.is_none_or(|name| behaviors(&name) != [IDENTIFIER]) {
            faults.push(format!("{}: its name is its identifier", message.full_name()));
        }
    }
    for service in pool.services().filter(|service| service.parent_file().package_name() == PACKAGE) {
        for method in service.methods() {
            faults.extend(http_faults(&method));
            if ["List", "Search"].iter().any(|verb| method.name().starts_with(verb)) {
                faults.extend(list_faults(&method));
            }
            if option(pool, &method.options(), "google.api.method_signature").is_none()
                && !method.is_client_streaming()
            {
                faults.push(format!("{}: has no signature", method.full_name()));
            }
        }
    }
    faults
}

#[test]
fn the_api_has_the_shape_that_its_users_expect() {
    let pool = DescriptorPool::decode(tidewall_proto::PUBLIC_DESCRIPTORS).unwrap();
    assert!(resources(&pool).len() >= 6, "the descriptors were not read");
    assert_eq!(faults(&pool), Vec::<String>::new());
}

/// Breaks every rule once.
const BAD: &str = r#"
    syntax = "proto3";
    package tidewall.v1;
    import "google/api/annotations.proto";
    import "google/api/client.proto";
    import "google/api/field_behavior.proto";
    import "google/api/resource.proto";
    import "google/protobuf/timestamp.proto";
    import "tidewall/v1/policy.proto";
    service BadService {
      rpc ListThings(ListThingsRequest) returns (ListThingsResponse) {
        option (google.api.http) = { post: "/v2/{thing=things/*}" body: "nothing" };
        option (policy) = { effect: EFFECT_READ resource: "parent" };
      }
      rpc Mend(MendRequest) returns (Thing);
    }
    message Thing {
      option (google.api.resource) = { type: "tidewall.dev/Thing" pattern: "things/{thing}" };
      string name = 1;
      google.protobuf.Timestamp made = 2;
      int64 made_at = 3;
      string other = 4 [(google.api.resource_reference) = {type: "tidewall.dev/Nothing"}];
    }
    message ListThingsRequest { string parent = 1 [(google.api.field_behavior) = OPTIONAL]; }
    message ListThingsResponse { repeated Thing things = 1; repeated Thing others = 2; }
    message MendRequest { string request_id = 1; }
"#;

#[test]
fn every_rule_can_be_broken() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("bad.proto"), BAD).unwrap();
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let mut compiler = protox::Compiler::new([directory.path(), std::path::Path::new(protos)]).unwrap();
    compiler.include_imports(true).open_file("bad.proto").unwrap();
    let found = faults(&compiler.descriptor_pool());
    for fault in [
        "Thing.made: a time is called",
        "Thing.made_at: a time is a",
        "Thing.other: there is no resource",
        "Thing: its name is its identifier",
        "MendRequest.request_id: does not say whether",
        "MendRequest.request_id: is needed",
        "ListThingsRequest.parent: does not say what",
        "ListThings: a list has pages",
        "ListThings: a list is of one kind",
        "ListThings: its path is not below",
        "ListThings: its path names thing",
        "ListThings: its body is nothing",
        "ListThings: GET is for reads",
        "ListThings: its path does not name parent",
        "Mend: no HTTP request",
        "Mend: has no signature",
    ] {
        assert!(found.iter().any(|found| found.contains(fault)), "{fault} is not found: {found:#?}");
    }
}
