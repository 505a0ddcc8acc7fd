//! The endpoint over real sockets: a client that speaks the protocol byte by byte, and psql and psycopg where they are.

mod client;
mod grafana;
mod limits;
mod programs;
mod protocol;
mod tables;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Limits, Sql, serve};
use crate::serve::access::{Access, Caller};

/// The token of tenant acme, and the one of all tenants.
const ACME: &str = "a token of tenant acme";
const ALL: &str = "a token of all tenants";

struct Served {
    address: SocketAddr,
    sql: Arc<Sql>,
    stop: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
}

async fn served(open: bool, limits: Limits) -> Served {
    let of = |name: &str, tenant: &str| Caller::new(name, 1, tenant);
    let access = Access::new(open).with(ACME, of("a", "acme")).with(ALL, of("b", "*"));
    let sql = Arc::new(Sql::new(tables::with_rows(), Arc::new(access), limits).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, (stop, stopping)) = (listener.local_addr().unwrap(), watch::channel(false));
    let server = tokio::spawn(serve(listener, sql.clone(), stopping));
    Served { address, sql, stop, server }
}
