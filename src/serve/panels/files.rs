//! The files of the panels: the registry and one SQL file for each panel. Sizes are bounded; every file that cannot be read is a fault.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::registry::{FOLDER, Panel, Registry};
use crate::policy::{Fault, Place};

/// Largest query, in bytes.
pub const MAX_SQL: u64 = 64 << 10;
/// Largest registry, in bytes.
const MAX_REGISTRY: u64 = 1 << 20;
/// Files of queries that are looked at, to find those of no panel.
const MAX_LISTED: usize = 1_000;

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On disk: the registry, and the directory that its queries are below.
    Disk {
        /// `[paths] panels`
        registry: PathBuf,
        /// `[paths] queries`
        queries: PathBuf,
    },
    /// Those that runwarden is shipped with, compiled in.
    Shipped,
}

/// A registry and its queries, read whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The registry.
    pub registry: Arc<Registry>,
    /// The SQL of each panel, by the name of its file as the registry has it.
    sql: BTreeMap<String, String>,
    /// How the registry is named in messages.
    pub file: String,
    /// Where the queries are, for messages.
    root: PathBuf,
    /// Files of queries that no panel uses.
    pub unused: Vec<String>,
}

impl Loaded {
    /// The SQL of a panel.
    pub fn sql(&self, panel: &Panel) -> &str {
        self.sql.get(&panel.query).map_or("", String::as_str)
    }

    /// How the file of a panel is named in messages.
    pub fn name(&self, panel: &Panel) -> String {
        self.root.join(&panel.query).display().to_string()
    }
}

/// When the files were changed last, as far as can be seen without reading them.
pub type Stamp = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

impl Source {
    /// Reads everything.
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn load(&self) -> Result<Loaded, Vec<Fault>> {
        match self {
            Self::Shipped => {
                let root = PathBuf::from("queries");
                let sql = |query: &str| {
                    Ok(shipped::QUERIES.iter().find(|(name, _)| *name == query).map(|(_, text)| (*text).to_owned()))
                };
                build("config/panels.yaml", shipped::REGISTRY, root, sql, Vec::new())
            }
            Self::Disk { registry, queries } => {
                let file = registry.display().to_string();
                let text = match read(registry, MAX_REGISTRY) {
                    Ok(text) => text,
                    Err(error) => return Err(vec![unread(&file, &error)]),
                };
                let sql = |query: &str| match read(&queries.join(query), MAX_SQL) {
                    Ok(text) => Ok(Some(text)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                };
                build(&file, &text, queries.clone(), sql, listed(queries))
            }
        }
    }

    /// Times and sizes of the files, to be compared with a later look. Of every file of the folder: one that the registry in force does
    /// not name may be what one that was refused waits for.
    pub fn stamp(&self) -> Stamp {
        let Self::Disk { registry, queries } = self else { return Vec::new() };
        let look = |path: PathBuf| {
            let seen = fs::metadata(&path).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
            (path, seen)
        };
        let files = listed(queries).into_iter().map(|name| queries.join(name));
        std::iter::once(registry.clone()).chain(files).map(look).collect()
    }
}

fn read(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    // one byte more than may be there, so that too much is seen
    fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(text)
}

fn unread(file: &str, error: &io::Error) -> Fault {
    Fault::new(file, Place { line: 1, column: 1 }, "", format!("cannot be read: {error}"), None)
}

/// The queries that are there, as a registry names them. One that cannot be listed has none that are unused.
fn listed(queries: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(queries.join(FOLDER)) else { return Vec::new() };
    let names = entries.flatten().take(MAX_LISTED).filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| name.ends_with(".sql")).map(|name| format!("{FOLDER}/{name}")).collect();
    names.sort_unstable();
    names
}

fn build(
    file: &str,
    text: &str,
    root: PathBuf,
    query: impl Fn(&str) -> io::Result<Option<String>>,
    listed: Vec<String>,
) -> Result<Loaded, Vec<Fault>> {
    let registry = Registry::parse(file, text)?;
    let (mut sql, mut faults) = (BTreeMap::new(), Vec::new());
    for (n, panel) in registry.panels().iter().enumerate() {
        match query(&panel.query) {
            Ok(Some(text)) if !text.trim().is_empty() => drop(sql.insert(panel.query.clone(), text)),
            Ok(found) => {
                let path = root.join(&panel.query).display().to_string();
                let what = if found.is_some() { "is empty" } else { "is not there" };
                let message = format!("the query of {} {what}: {path}", panel.id);
                faults.push(Fault::new(file, panel.place, &format!("panels[{n}].query"), message, None));
            }
            Err(error) => faults.push(unread(&root.join(&panel.query).display().to_string(), &error)),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let unused = listed.into_iter().filter(|name| !sql.contains_key(name));
    let unused = unused.map(|name| root.join(name).display().to_string()).collect();
    Ok(Loaded { registry: Arc::new(registry), sql, file: file.to_owned(), root, unused })
}

/// The files that runwarden is shipped with.
mod shipped {
    /// `config/panels.yaml`
    pub(super) const REGISTRY: &str = include_str!("../../../config/panels.yaml");

    macro_rules! queries {
        ($($name:literal)*) => {
            /// `queries/panels/*.sql`
            pub(super) const QUERIES: &[(&str, &str)] = &[$((
                concat!("panels/", $name, ".sql"),
                include_str!(concat!("../../../queries/panels/", $name, ".sql")),
            )),*];
        };
    }

    queries! {
        "pol_gov_act_o1" "pol_gov_act_o2" "pol_gov_act_o3" "pol_gov_act_o4" "pol_gov_act_o5"
        "pol_gov_dft_o1" "pol_gov_dft_o2" "pol_gov_dft_o3" "pol_gov_dft_o4" "pol_gov_dft_o5"
        "pol_gov_lib_o1" "pol_gov_lib_o2" "pol_gov_lib_o3" "pol_gov_lib_o4" "pol_gov_lib_o5"
        "pol_lim_thr_o1" "pol_lim_thr_o2" "pol_lim_thr_o3" "pol_lim_thr_o4" "pol_lim_thr_o5"
        "pol_lim_vio_o1" "pol_lim_vio_o2" "pol_lim_vio_o3" "pol_lim_vio_o4" "pol_lim_vio_o5"
        "pol_gov_les_o1" "pol_gov_les_o2" "pol_gov_les_o3" "pol_gov_les_o4" "pol_gov_les_o5"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(folder: &Path) -> Source {
        Source::Disk { registry: folder.join("panels.yaml"), queries: folder.join("queries") }
    }

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn registry(queries: &[&str]) -> String {
        let panel = |(n, query): (usize, &&str)| {
            format!(
                "  - {{id: P-{n}, question: q, topic: t, query: panels/{query}, endpoint: /x, columns: [a],\n     \
                 capability: {{id: c, status: DECLARED}}, invariant: {{min_rows: 0}}}}\n"
            )
        };
        format!("panels:\n{}", queries.iter().enumerate().map(panel).collect::<String>())
    }

    #[test]
    fn the_shipped_files_are_those_of_the_repository_and_none_is_unused() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let repository = Source::Disk { registry: root.join("config/panels.yaml"), queries: root.join("queries") };
        let (shipped, read) = (Source::Shipped.load().unwrap(), repository.load().unwrap());
        assert_eq!((&shipped.registry, &shipped.sql), (&read.registry, &read.sql));
        assert_eq!(read.unused, Vec::<String>::new());
        assert_eq!(shipped.registry.panels().len(), 30);
    }

    #[test]
    fn a_missing_an_empty_and_a_huge_query_are_faults_together_and_an_unused_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "panels.yaml", &registry(&["gone.sql", "empty.sql", "huge.sql", "good.sql"]));
        for (name, text) in
            [("empty", " \n"), ("huge", &"-".repeat(MAX_SQL as usize + 1)), ("good", "SELECT 1"), ("idle", "x")]
        {
            write(folder.path(), &format!("queries/panels/{name}.sql"), text);
        }
        let said: Vec<String> = disk(folder.path()).load().unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("the query of P-0 is not there") && said[1].contains("P-1 is empty"), "{said:?}");
        assert!(said[2].contains("more than 65536 bytes"), "{said:?}");
        write(folder.path(), "panels.yaml", &registry(&["good.sql"]));
        let loaded = disk(folder.path()).load().unwrap();
        assert!(loaded.unused.iter().any(|name| name.ends_with("idle.sql")), "{:?}", loaded.unused);
        assert!(!loaded.unused.iter().any(|name| name.ends_with("good.sql")));
    }

    #[test]
    fn a_stamp_changes_with_a_file_and_with_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "panels.yaml", &registry(&["good.sql"]));
        write(folder.path(), "queries/panels/good.sql", "SELECT 1");
        let source = disk(folder.path());
        let before = source.stamp();
        assert_eq!(source.stamp(), before);
        write(folder.path(), "queries/panels/good.sql", "SELECT 1, 2");
        let changed = source.stamp();
        assert_ne!(changed, before);
        write(folder.path(), "queries/panels/new.sql", "SELECT 1");
        assert_ne!(source.stamp(), changed, "one that no registry names yet");
        assert!(Source::Shipped.stamp().is_empty(), "what is compiled in does not change");
    }
}
