//! Compiles the .proto files with protox, so that no protoc is needed, and makes the table of the API's methods from the policies
//! that they declare.

use std::fmt::Write as _;
use std::path::PathBuf;

use protox::prost_reflect::prost::encoding::{WireType, encode_key, encode_varint};
use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage, Value,
};

const FILES: &[&str] = &[
    "tidewall/v1/policy.proto",
    "tidewall/v1/common.proto",
    "tidewall/v1/region.proto",
    "tidewall/v1/event.proto",
    "tidewall/v1/ticket.proto",
    "tidewall/v1/account.proto",
    "tidewall/v1/outcome.proto",
    "tidewall/v1/operator.proto",
    "tidewall/v1/change.proto",
    "tidewall/v1/webhook.proto",
    "tidewall/internal/v1/keyring.proto",
    "tidewall/internal/v1/shard.proto",
    "tidewall/internal/v1/peer.proto",
];

/// The public package: its methods declare policies.
const PUBLIC: &str = "tidewall.v1";
/// What is spoken between our own processes, and what stands in the log.
const INTERNAL: &str = "tidewall.internal";
const LOG: &str = "tidewall.log";
/// Number of `file` in `google.protobuf.FileDescriptorSet`.
const FILE: u32 = 1;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(FILES)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let pool = compiler.descriptor_pool();
    std::fs::write(out.join("public.bin"), public(&pool))?;
    let services = pool.services().filter(|service| service.parent_file().package_name() == PUBLIC);
    let methods: Vec<MethodDescriptor> =
        services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    std::fs::write(out.join("methods.rs"), table(&methods)?)?;
    tonic_prost_build::configure()
        .extern_path(".tidewall.log.v1", "::tidewall_messages")
        // Entry payloads and file chunks are shared, not copied.
        .bytes(".tidewall.internal.v1.RaftEntry")
        .bytes(".tidewall.internal.v1.Deliver")
        .bytes(".tidewall.internal.v1.Command.payload")
        .bytes(".tidewall.internal.v1.Outcome.done")
        .bytes(".tidewall.internal.v1.QueryResult.module")
        .bytes(".tidewall.internal.v1.EntryChanges.changes")
        .bytes(".tidewall.internal.v1.Effect.call")
        .bytes(".tidewall.internal.v1.ExportResponse")
        .bytes(".tidewall.internal.v1.ImportRequest")
        .bytes(".tidewall.internal.v1.InstallSnapshotRequest")
        .bytes(".tidewall.v1.ExportRegionResponse")
        .bytes(".tidewall.v1.ImportRegionRequest")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// An encoded `FileDescriptorSet` of what clients see. A file is copied as it was encoded: options that nobody here knows as
/// types, such as `google.api.http`, are in it.
fn public(pool: &DescriptorPool) -> Vec<u8> {
    let internal = |package: &str| package.starts_with(INTERNAL) || package.starts_with(LOG);
    let mut set = Vec::new();
    for file in pool.files().filter(|file| !internal(file.package_name())) {
        let bytes = file.encode_to_vec();
        encode_key(FILE, WireType::LengthDelimited, &mut set);
        encode_varint(bytes.len() as u64, &mut set);
        set.extend(bytes);
    }
    set
}

/// The code of the table of methods.
fn table(methods: &[MethodDescriptor]) -> Result<String, Failure> {
    let (mut variants, mut arms, mut resources) = (String::new(), String::new(), String::new());
    for method in methods {
        let policy = policy(method)?;
        let (name, service) = (method.name(), method.parent_service().full_name().to_owned());
        writeln!(variants, "    /// `{service}/{name}`.\n    {name},")?;
        let roles: Result<Vec<String>, Failure> =
            list(&policy, "roles").iter().map(|role| enumerated(&policy, "roles", role, name)).collect();
        let field = |field: &str| {
            let value = policy.get_field_by_name(field).map(|value| value.into_owned());
            value.ok_or_else(|| format!("{name}: policies have no field {field}"))
        };
        let priority = enumerated(&policy, "priority", &field("priority")?, name)?;
        let effect = enumerated(&policy, "effect", &field("effect")?, name)?;
        let input = method.input();
        let has_id = input.get_field_by_name("request_id").is_some();
        match effect.as_str() {
            "v1::Effect::Command" if !has_id => {
                return Err(format!("{name}: with EFFECT_COMMAND its message has a request_id").into());
            }
            "v1::Effect::Idempotent" if has_id => {
                return Err(format!("{name}: with EFFECT_IDEMPOTENT its message has no request_id").into());
            }
            _ => {}
        }
        let path = field("resource")?.as_str().unwrap_or_default().to_owned();
        let flags: Result<Vec<String>, Failure> = ["transfers", "anonymous", "secret", "stepwise"]
            .iter()
            .map(|name| Ok(format!("{name}: {}", field(name)?.as_bool().unwrap_or_default())))
            .collect();
        writeln!(
            arms,
            "            Self::{name} => Declared {{ name: {name:?}, service: {service:?}, streams: {}, client_streams: {}, policy: \
             Policy {{ roles: &[{}], priority: {priority}, effect: {effect}, resource: {path:?}, {} }} }},",
            method.is_client_streaming() || method.is_server_streaming(),
            method.is_client_streaming(),
            roles?.join(", "),
            flags?.join(", "),
        )?;
        if !method.is_client_streaming() {
            let getter = getter(&input, &path).map_err(|why| format!("{name}: {why}"))?;
            let aged = ["consistency", "max_age"].map(|field| input.get_field_by_name(field).is_some());
            let reads = effect == "v1::Effect::Read";
            let freshness = match aged {
                [true, true] if reads => {
                    "\n    fn freshness(&self) -> (i32, Option<::prost_types::Duration>) {\n        (self.consistency, self.max_age)\n    }"
                }
                [false, false] => "",
                _ => {
                    return Err(format!(
                        "{name}: with EFFECT_READ a message has a consistency and a max_age, or neither"
                    )
                    .into());
                }
            };
            writeln!(
                resources,
                "impl Asks for v1::{} {{\n    fn resource(&self) -> &str {{\n        {getter}\n    }}{freshness}\n}}",
                input.name()
            )?;
        }
    }
    let all: Vec<String> = methods.iter().map(|method| format!("Self::{}", method.name())).collect();
    Ok(format!(
        "/// The methods of the public API.\n#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]\npub enum Method \
         {{\n{variants}}}\n\nimpl Method {{\n    /// All of them, in the order of their numbers.\n    pub const ALL: [Self; {}] = \
         [{}];\n\n    /// What the .proto files say of it.\n    pub const fn declared(self) -> Declared {{\n        match self {{\n\
         {arms}        }}\n    }}\n}}\n\n{resources}",
        methods.len(),
        all.join(", "),
    ))
}

/// The policy that a method declares.
fn policy(method: &MethodDescriptor) -> Result<DynamicMessage, Failure> {
    let pool = method.parent_pool();
    let extension =
        pool.get_extension_by_name("tidewall.v1.policy").ok_or("policy.proto has no option `policy`")?;
    let options = method.options();
    if !options.has_extension(&extension) {
        return Err(format!("{} declares no policy: see policy.proto", method.full_name()).into());
    }
    let value = options.get_extension(&extension).into_owned();
    Ok(value.as_message().ok_or("the option `policy` is no message")?.clone())
}

fn list(message: &DynamicMessage, field: &str) -> Vec<Value> {
    let value = message.get_field_by_name(field).map(|value| value.into_owned());
    value.and_then(|value| value.as_list().map(<[Value]>::to_vec)).unwrap_or_default()
}

/// The Rust name of an enum's value in a field of a policy. What is unspecified was forgotten.
fn enumerated(policy: &DynamicMessage, field: &str, value: &Value, method: &str) -> Result<String, Failure> {
    let kind = policy.descriptor().get_field_by_name(field).map(|field| field.kind());
    let kind = kind.as_ref().and_then(|kind| kind.as_enum()).ok_or("the field is no enum")?.clone();
    let number = value.as_enum_number().filter(|number| *number != 0);
    let number = number.ok_or_else(|| format!("{method}: its policy has no {field}"))?;
    let known = kind.get_value(number).ok_or_else(|| format!("{method}: {field} {number} is not known"))?;
    // ROLE_ORGANISER of Role is Role::Organiser.
    let prefix = format!("{}_", kind.name().to_uppercase());
    let words = known.name().strip_prefix(&prefix).unwrap_or(known.name()).to_lowercase();
    let mut letters = words.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    Ok(format!("v1::{}::{}{}", kind.name(), first.into_iter().collect::<String>(), letters.as_str()))
}

/// Code that reads the text at a path of fields.
fn getter(message: &MessageDescriptor, path: &str) -> Result<String, String> {
    if path.is_empty() {
        return Ok("\"\"".to_owned());
    }
    let missing = |field: &str| format!("{} has no field {field} for the resource {path}", message.name());
    match path.split_once('.') {
        None => {
            message.get_field_by_name(path).ok_or_else(|| missing(path))?;
            Ok(format!("&self.{path}"))
        }
        Some((outer, inner)) => {
            let kind = message.get_field_by_name(outer).ok_or_else(|| missing(outer))?.kind();
            let part = kind.as_message().ok_or_else(|| missing(outer))?;
            part.get_field_by_name(inner).ok_or_else(|| missing(inner))?;
            Ok(format!("self.{outer}.as_ref().map(|part| part.{inner}.as_str()).unwrap_or_default()"))
        }
    }
}
