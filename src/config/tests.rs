use super::*;

fn read(text: &str) -> Result<Config, Vec<Fault>> {
    Config::from_toml(text, "c.toml", [])
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn faults(text: &str) -> Vec<String> {
    read(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = Config::default();
    assert_eq!(config.roles.len(), 4);
    assert_eq!(config.kafka.brokers, "localhost:9092");
    assert_eq!(config.topics.telemetry, "runs.telemetry");
    assert_eq!(config.topics.dead_letter, "runwarden.dead-letter");
    assert_eq!(config.time.allowed_lateness, seconds(10));
    assert_eq!(config.time.idle_timeout, seconds(30));
    assert_eq!(config.time.future, seconds(300));
    assert_eq!(config.limits.dedup_ids, 4_000_000);
    assert_eq!(config.http.address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.auth.loopback, Loopback::Token, "secure by default");
    assert_eq!(config.decoder(Arc::default()).future, 300_000_000);
}

/// The shipped file with the '#' of every `#key = …` removed; examples without a default are left out: `#[[section]]` and `#[section]` up
/// to the next empty line, and some keys.
fn uncommented(text: &str) -> String {
    let examples = ["#slot", "#\"", "#sign-with", "#anchor-file", "#marker-file", "#headers"];
    let mut entry = false;
    let lines = text.lines().filter(|line| {
        entry = line.starts_with("#[") || (entry && !line.is_empty());
        !entry && !examples.iter().any(|example| line.starts_with(example))
    });
    lines.map(uncomment).collect()
}

/// "# text" is a comment, "#key = …" a setting, "#    …" the continuation of one.
fn uncomment(line: &str) -> String {
    let comment = line.starts_with("# ") && !line.starts_with("#  ");
    if comment { "\n".to_owned() } else { line.trim_start_matches('#').to_owned() + "\n" }
}

#[test]
fn the_shipped_file_is_the_defaults_and_names_every_key() {
    let text = std::fs::read_to_string(DEFAULT_FILE).unwrap();
    assert_eq!(read(&text), Ok(Config::default()));
    let full = uncommented(&text);
    assert_eq!(read(&full), Ok(Config::default()), "each default in the file is the default");
    let (_, reader) = Config::read("", "defaults", []).unwrap();
    for key in &reader.known {
        let Some((_, name)) = key.rsplit_once('.') else { continue };
        let stands = [format!("\n#{name} = "), format!("\n[{key}]"), format!("\n#[{key}]"), format!("\n#[[{key}]]")];
        assert!(stands.iter().any(|form| text.contains(form)), "{key} is missing in {DEFAULT_FILE}");
    }
}

#[test]
fn the_examples_in_the_shipped_file_are_valid() {
    let text = std::fs::read_to_string(DEFAULT_FILE).unwrap();
    let full: String = text.lines().map(uncomment).collect();
    let secrets = env(&[
        ("GRAFANA_TOKEN", "0123456789abcdef"),
        ("COMMAND_KEY", "fedcba9876543210"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme"),
        ("PAGERDUTY_KEY", "0123456789abcdef"),
    ]);
    let config = Config::from_toml(&full, "f", secrets).unwrap();
    assert_eq!(config.auth.tokens[0].token.expose(), "0123456789abcdef");
    assert_eq!(config.kafka.client["sasl.username"].expose(), "runwarden");
}

#[test]
fn every_fault_is_found_at_once_with_its_place() {
    let text = "[time]\nallowed-latenes = \"10s\"\nfuture = 5\nidle-timeout = \"2d\"\n\n[kafak]\nbrokers = \"b:1\"\n[topics]\nalerts = \"runwarden.signals\"\npartitions = 0\n[roles]\nenabled = [\"core\", \"server\"]\n";
    assert_eq!(
        faults(text),
        [
            "c.toml:2:1: time.allowed-latenes: unknown key; did you mean allowed-lateness?",
            "c.toml:3:10: time.future: must be a duration from 0s to 1d, such as \"5m\"",
            "c.toml:4:16: time.idle-timeout: must be from 1s to 1d",
            "c.toml:6:2: kafak: unknown section; did you mean kafka?",
            "c.toml:9:10: topics.alerts: must differ from topics.signals",
            "c.toml:10:14: topics.partitions: must be an integer from 1 to 10000",
            "c.toml:12:11: roles.enabled: did you mean serve? It is one of edge, core, serve, channels",
        ]
    );
}

#[test]
fn tokens_of_an_issuer_count_when_the_section_is_there_in_the_file_or_by_variables() {
    assert_eq!(Config::default().auth.jwt, None);
    let text = "[auth.jwt]\njwks = \"k.json\"\nissuer = \"i\"\naudience = \"a\"\n";
    let jwt = read(text).unwrap().auth.jwt.unwrap();
    assert_eq!((jwt.tenant_claim.as_str(), jwt.name_claim.as_str(), jwt.leeway), ("tenant_id", "sub", seconds(60)));
    let variables = [
        ("RUNWARDEN_AUTH_JWT__JWKS", "k.json"),
        ("RUNWARDEN_AUTH_JWT__ISSUER", "i"),
        ("RUNWARDEN_AUTH_JWT__AUDIENCE", "a"),
    ];
    assert_eq!(Config::from_toml("", "c.toml", env(&variables)).unwrap().auth.jwt, Some(jwt.clone()));
    let named = [("RUNWARDEN_AUTH_JWT__TENANT_CLAIM", "org")];
    let jwt = Config::from_toml(text, "c.toml", env(&named)).unwrap().auth.jwt.unwrap();
    assert_eq!(jwt.tenant_claim, "org");
    assert!(
        Config::from_toml("", "c.toml", env(&variables[..1])).unwrap_err()[0]
            .to_string()
            .contains("lacks a required key")
    );
    let faults = Config::from_toml(text, "c.toml", env(&[("RUNWARDEN_AUTH_JWT__JWSK", "k")])).unwrap_err();
    assert!(faults[0].to_string().contains("RUNWARDEN_AUTH_JWT__JWKS"), "{faults:?}");
}

#[test]
fn what_is_not_toml_says_where() {
    let faults = faults("[time\nfuture = \"5m\"\n");
    assert!(faults[0].starts_with("c.toml:1:"), "{faults:?}");
}

#[test]
fn wrong_values_are_refused_with_what_would_be_right() {
    for (text, part) in [
        ("[http]\nlisten = \"8080\"", "http.listen: must be an address and a port"),
        ("[kafka]\nbrokers = \"localhost\"", "kafka.brokers: must be host:port"),
        ("[kafka]\nbrokers = \"\"", "must not be empty"),
        ("[kafka.client]\n\"group.id\" = \"x\"", "belongs in kafka.group"),
        ("[kafka]\nclient = 3", "must be a section, [kafka.client]"),
        ("[kafka.client]\na = [1]", "kafka.client.a: must be a string"),
        ("[topics]\nruns = \"a b\"", "must be a topic name"),
        ("[topics]\nreplication = 0", "must be -1"),
        ("[telemetry]\nattributes = [\"userPrompt\"]", "userPrompt is never kept"),
        ("[telemetry]\nforbidden = [\"tenant_id\"]", "is required"),
        ("[telemetry]\nattributes = [1]", "must be an array of strings"),
        ("[telemetry]\nkeep-undecodable = \"yes\"", "must be true or false"),
        ("[roles]\nenabled = []", "at least one role"),
        ("[log]\nlevel = \"rdkafka=loud\"", "log.level: must be a level"),
        ("[otlp]\ndefault-tenant = \"*\"", "must be one tenant"),
        ("[auth]\nsign-with = \"k\"", "one of auth.keys"),
        ("[[auth.tokens]]\nname = \"a\"\ntoken = \"short\"\ntenant = \"t\"", "at least 16 bytes"),
        ("[[auth.tokens]]\nname = \"a\"", "auth.tokens[0]: lacks a required key"),
        ("[[auth.tokens]]\nname = \"a\"\ntoken = \"env:NO_SUCH\"\ntenant = \"t\"", "NO_SUCH is not set"),
        ("[[auth.tokens]]\nnmae = \"a\"", "did you mean name?"),
        (
            "[[auth.tokens]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\ntenant = \"t\"\nrole = \"root\"",
            "view, operate, admin",
        ),
        (
            "[[auth.tokens]]\nname = \"a\\tb\"\ntoken = \"0123456789abcdef\"\ntenant = \"t\"",
            "without control characters",
        ),
        ("[auth.jwt]\njwks = \"k.json\"\nissuer = \"i\"", "auth.jwt: lacks a required key"),
        ("[auth.jwt]\njwsk = \"k.json\"", "auth.jwt.jwsk: unknown key; did you mean jwks?"),
        ("[auth]\njwt = 3", "must be a section, [auth.jwt]"),
        (
            "[auth.jwt]\njwks = \"k\"\nissuer = \"i\"\naudience = \"a\"\nleeway = \"1h\"",
            "auth.jwt.leeway: must be from",
        ),
        ("limits = 3", "must be a section, [limits]"),
    ] {
        let faults = faults(text);
        assert!(faults.iter().any(|fault| fault.contains(part)), "{text} gave {faults:?}");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let text =
        "[kafka]\nbrokers = \"file:1\"\n[kafka.client]\nsecurity.protocol = \"SSL\"\n\"ssl.ca.location\" = \"a\"\n";
    let variables = env(&[
        ("RUNWARDEN_KAFKA__BROKERS", "env:2"),
        ("RUNWARDEN_KAFKA__SLOT", "0"),
        ("RUNWARDEN_KAFKA_CLIENT__SASL_PASSWORD", "hush"),
        ("RUNWARDEN_KAFKA__CLIENT__SSL_CA_LOCATION", "b"),
        ("RUNWARDEN_TIME__ALLOWED_LATENESS", "1m"),
        ("RUNWARDEN_TOPICS__PARTITIONS", "3"),
        ("RUNWARDEN_TELEMETRY__KEEP_UNDECODABLE", "true"),
        ("RUNWARDEN_ROLES__ENABLED", "core, serve"),
        ("RUNWARDEN_GIT_SHA", "not a setting"),
        ("PATH", "/bin"),
    ]);
    let config = Config::from_toml(text, "c.toml", variables).unwrap();
    assert_eq!(config.kafka.brokers, "env:2");
    assert_eq!(config.kafka.slot.as_deref(), Some("0"), "a string even if it looks like a number");
    assert_eq!(config.kafka.client["sasl.password"].expose(), "hush");
    assert_eq!(config.kafka.client["security.protocol"].expose(), "SSL", "dotted names need no quotes");
    assert_eq!(config.kafka.client["ssl.ca.location"].expose(), "b");
    assert_eq!(config.time.allowed_lateness, seconds(60));
    assert_eq!(config.topics.partitions, 3);
    assert!(config.telemetry.keep_undecodable);
    assert_eq!(config.roles, BTreeSet::from([Role::Core, Role::Serve]));
}

#[test]
fn a_variable_that_sets_nothing_is_a_fault() {
    let faults =
        Config::from_toml("", "c.toml", env(&[("RUNWARDEN_KAFKA__BROKER", "b:1"), ("RUNWARDEN_TIME__FUTURE", "x")]))
            .unwrap_err();
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "RUNWARDEN_TIME__FUTURE: time.future: must be a duration from 0s to 1d, such as \"5m\"",
            "RUNWARDEN_KAFKA__BROKER: unknown variable; did you mean RUNWARDEN_KAFKA__BROKERS?",
        ]
    );
}

#[test]
fn secrets_do_not_show_and_do_not_count_in_the_digest() {
    let text = |password: &str| format!("[kafka.client]\n\"sasl.password\" = \"{password}\"");
    let (a, b) = (read(&text("hush-hush")).unwrap(), read(&text("other")).unwrap());
    assert!(!format!("{a:?}").contains("hush"));
    assert_eq!(a.digest(), b.digest());
    assert_ne!(a.digest(), Config::default().digest());
    let tls = read("[kafka.client]\nsecurity.protocol = \"SSL\"").unwrap();
    let plain = read("[kafka.client]\nsecurity.protocol = \"PLAINTEXT\"").unwrap();
    assert_ne!(tls.digest(), plain.digest(), "properties that are no secret count");
    assert!(a.digest() < 1 << 48, "exact as a float");
}

#[test]
fn a_named_file_must_exist() {
    let faults = Config::load(Some(Path::new("no/such/file.toml")), []).unwrap_err();
    assert!(faults[0].to_string().starts_with("no/such/file.toml: cannot read it"), "{}", faults[0]);
}

proptest::proptest! {
    #[test]
    fn any_text_is_answered(text in "(\\[[a-z.]{0,9}\\]\n|[a-z\".-]{0,12} = [\\[\\]{}\"0-9a-z., -]{0,20}\n){0,12}") {
        let _answered = read(&text);
    }
}

#[test]
fn where_spans_come_from_is_checked_as_a_whole() {
    let with = |more: &str| read(&format!("[otlp]\n{more}\n"));
    let otlp =
        with("topic = \"otlp_spans\"\nencoding = \"otlp_json\"\nrun-attributes = [\"session.id\"]").unwrap().otlp;
    assert_eq!((otlp.topic.as_deref(), otlp.names.run), (Some("otlp_spans"), vec!["session.id".to_owned()]));
    assert_eq!(with("topic = \"\"").unwrap().otlp.topic, None);
    for (bad, said) in [
        ("topic = \"runs.telemetry\"", "otlp.topic: runs.telemetry is one of [topics]"),
        ("human-attributes = [\"enduser.id\"]", "otlp: enduser.id is named under otlp and is never kept"),
        ("in-flight-bytes = 1_000_000", "otlp.in-flight-bytes: must be at least twice request-bytes"),
        ("agent-usage = \"always\"", "otlp.agent-usage: must be one of remote, never"),
    ] {
        let faults = faults(&format!("[otlp]\n{bad}\n"));
        assert!(faults.len() == 1 && faults[0].contains(said), "{faults:?}");
    }
}
