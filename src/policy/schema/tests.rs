use std::fs;
use std::path::Path;

use super::*;

#[test]
fn the_shipped_schema_is_what_is_generated() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shipped = fs::read_to_string(root.join("docs/policy.schema.json")).unwrap_or_default();
    if shipped != schema_text() {
        fs::write(root.join("target/policy.schema.json"), schema_text()).unwrap();
        panic!("docs/policy.schema.json is not what is generated, which is now in target/policy.schema.json");
    }
}

/// The properties of an object of the schema.
fn properties<'s>(of: &'s Json, pointer: &str) -> Vec<&'s str> {
    let object = of.pointer(pointer).and_then(Json::as_object).unwrap_or_else(|| panic!("{pointer}"));
    object.keys().map(String::as_str).collect()
}

#[test]
fn every_key_of_the_reader_is_in_the_schema_and_no_other() {
    let whole = schema();
    let policy = "/$defs/policy/properties";
    let guardian = "/$defs/guardian_file/properties/policy/properties";
    for (pointer, table) in [
        (policy.to_owned(), keys::POLICY),
        (format!("{policy}/scope/properties"), keys::SCOPE),
        (format!("{policy}/active/properties"), keys::ACTIVE),
        (format!("{policy}/monitor/properties"), keys::MONITOR),
        (format!("{policy}/alerts/properties"), keys::ALERTS),
        (format!("{policy}/override/properties"), keys::OVERRIDE),
        (format!("{policy}/rollback/properties"), keys::ROLLBACK),
        ("/$defs/limit/properties".to_owned(), keys::LIMIT),
        ("/$defs/action/properties".to_owned(), keys::ACTION),
        ("/$defs/condition/oneOf/0/properties".to_owned(), keys::COMPOSITE),
        ("/$defs/condition/oneOf/1/properties".to_owned(), keys::COMPARISON),
        ("/$defs/condition/oneOf/2/properties".to_owned(), keys::SQL),
        (guardian.to_owned(), guardian::POLICY_KEYS),
        (format!("{guardian}/triggers/items/properties"), guardian::TRIGGER_KEYS),
    ] {
        let mut table = table.to_vec();
        table.sort_unstable();
        assert_eq!(properties(&whole, &pointer), table, "{pointer}");
    }
}

#[test]
fn what_may_be_left_out_may_be_null_and_what_is_required_may_not() {
    let whole = schema();
    let limit = whole.pointer("/$defs/limit").unwrap();
    assert_eq!(limit["properties"]["max"]["type"], "number");
    assert_eq!(limit["properties"]["near"]["type"], json!(["number", "null"]));
    assert_eq!(limit["properties"]["near"]["default"], 0.8);
    assert!(limit["properties"]["status"]["enum"].as_array().unwrap().contains(&Json::Null));
    assert_eq!(whole["$defs"]["policy"]["properties"]["condition"]["anyOf"][1]["type"], "null");
    assert_eq!(whole["$defs"]["policy"]["properties"]["enforcement_mode"]["default"], "AUDIT");
}
