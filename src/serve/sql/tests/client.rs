//! A client of the protocol, no more than the tests need.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// SQLSTATE and text.
pub(super) type Told = (String, String);

pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) key: (i32, i32),
    pub(super) parameters: Vec<(String, String)>,
}

/// What came until ReadyForQuery, or until the end.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// Name and type of each column.
    pub(super) columns: Vec<(String, u32)>,
    pub(super) rows: Vec<Vec<Option<String>>>,
    pub(super) tags: Vec<String>,
    pub(super) errors: Vec<Told>,
    pub(super) empty: usize,
    pub(super) suspended: usize,
    /// Types of the parameters.
    pub(super) asked: Vec<u32>,
    /// None: the connection was closed.
    pub(super) status: Option<char>,
}

impl Answer {
    /// The code of its only error; "" where there is none.
    pub(super) fn code(&self) -> &str {
        assert!(self.errors.len() < 2, "{self:?}");
        self.errors.first().map_or("", |(code, _)| code)
    }

    /// The only value.
    pub(super) fn value(&self) -> &str {
        match (self.rows.as_slice(), self.errors.as_slice()) {
            ([row], []) if row.len() == 1 => row[0].as_deref().unwrap_or("NULL"),
            _ => panic!("{self:?}"),
        }
    }

    /// The values of the first column.
    pub(super) fn first(&self) -> Vec<&str> {
        assert_eq!(self.errors, [], "{self:?}");
        self.rows.iter().map(|row| row[0].as_deref().unwrap_or("NULL")).collect()
    }
}

fn text(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    (String::from_utf8(bytes[..end].to_vec()).unwrap(), &bytes[end + 1..])
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn told(body: &[u8]) -> Told {
    let (mut code, mut message, mut rest) = (String::new(), String::new(), body);
    while rest[0] != 0 {
        let (value, after) = text(&rest[1..]);
        match rest[0] {
            b'C' => code = value,
            b'M' => message = value,
            _ => {}
        }
        rest = after;
    }
    (code, message)
}

impl Client {
    /// Logs in; settings as name and value.
    pub(super) async fn log_in(
        address: SocketAddr,
        user: &str,
        password: Option<&str>,
        settings: &[(&str, &str)],
    ) -> Result<Self, Told> {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut body = 196_608_i32.to_be_bytes().to_vec();
        for (name, value) in [("user", user)].iter().chain(settings) {
            body.extend(format!("{name}\0{value}\0").bytes());
        }
        body.push(0);
        let length = i32::try_from(body.len() + 4).unwrap();
        stream.write_all(&[&length.to_be_bytes(), body.as_slice()].concat()).await.unwrap();
        let mut client = Self { stream, key: (0, 0), parameters: Vec::new() };
        loop {
            let Some((kind, body)) = client.read().await else { return Err(("closed".into(), String::new())) };
            match kind {
                'R' if i32_at(&body, 0) == 3 => match password {
                    Some(password) => client.send('p', format!("{password}\0").as_bytes()).await,
                    None => return Err(("asked".into(), "for a password".into())),
                },
                'S' => {
                    let (name, rest) = text(&body);
                    client.parameters.push((name, text(rest).0));
                }
                'K' => client.key = (i32_at(&body, 0), i32_at(&body, 4)),
                'E' => return Err(told(&body)),
                'Z' => return Ok(client),
                _ => {}
            }
        }
    }

    /// As the tenant of a token.
    pub(super) async fn of(address: SocketAddr, token: &str) -> Self {
        Self::log_in(address, "somebody", Some(token), &[("database", "runwarden")]).await.unwrap()
    }

    pub(super) async fn send(&mut self, kind: char, body: &[u8]) {
        let length = i32::try_from(body.len() + 4).unwrap();
        let frame = [&[u8::try_from(kind).unwrap()], length.to_be_bytes().as_slice(), body].concat();
        self.stream.write_all(&frame).await.unwrap();
    }

    pub(super) async fn read(&mut self) -> Option<(char, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).await.ok()?;
        let mut body = vec![0; usize::try_from(i32_at(&head, 1) - 4).unwrap()];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((char::from(head[0]), body))
    }

    /// What comes until the server is ready for more.
    pub(super) async fn answer(&mut self) -> Answer {
        let mut answer = Answer::default();
        while let Some((kind, body)) = self.read().await {
            match kind {
                'T' => {
                    answer.columns.clear();
                    let mut rest = &body[2..];
                    for _ in 0..i16_at(&body, 0) {
                        let (name, after) = text(rest);
                        answer.columns.push((name, i32_at(after, 6).cast_unsigned()));
                        rest = &after[18..];
                    }
                }
                'D' => {
                    let (mut row, mut at) = (Vec::new(), 2);
                    for _ in 0..i16_at(&body, 0) {
                        let length = usize::try_from(i32_at(&body, at)).ok();
                        at += 4;
                        row.push(length.map(|length| String::from_utf8_lossy(&body[at..at + length]).into_owned()));
                        at += length.unwrap_or(0);
                    }
                    answer.rows.push(row);
                }
                't' => {
                    answer.asked =
                        (0..i16_at(&body, 0)).map(|n| i32_at(&body, 2 + 4 * n as usize).cast_unsigned()).collect()
                }
                'C' => answer.tags.push(text(&body).0),
                'E' => answer.errors.push(told(&body)),
                'I' => answer.empty += 1,
                's' => answer.suspended += 1,
                'Z' => {
                    answer.status = Some(char::from(body[0]));
                    break;
                }
                _ => {}
            }
        }
        answer
    }

    pub(super) async fn simple(&mut self, sql: &str) -> Answer {
        self.send('Q', format!("{sql}\0").as_bytes()).await;
        self.answer().await
    }

    pub(super) async fn parse(&mut self, name: &str, sql: &str, types: &[u32]) {
        let mut body = format!("{name}\0{sql}\0").into_bytes();
        body.extend(u16::try_from(types.len()).unwrap().to_be_bytes());
        types.iter().for_each(|oid| body.extend(oid.to_be_bytes()));
        self.send('P', &body).await;
    }

    /// Values as text; None: NULL.
    pub(super) async fn bind(&mut self, portal: &str, name: &str, values: &[Option<&str>]) {
        let mut body = format!("{portal}\0{name}\0\0\0").into_bytes();
        body.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap());
            body.extend(length.to_be_bytes());
            body.extend(value.unwrap_or_default().bytes());
        }
        body.extend([0, 0]);
        self.send('B', &body).await;
    }

    pub(super) async fn describe(&mut self, kind: char, name: &str) {
        self.send('D', format!("{kind}{name}\0").as_bytes()).await;
    }

    pub(super) async fn execute(&mut self, portal: &str, most: i32) {
        let body = [format!("{portal}\0").as_bytes(), &most.to_be_bytes()].concat();
        self.send('E', &body).await;
    }

    pub(super) async fn sync(&mut self) -> Answer {
        self.send('S', &[]).await;
        self.answer().await
    }

    /// One statement over the extended protocol, as drivers send it.
    pub(super) async fn extended(&mut self, sql: &str, types: &[u32], values: &[Option<&str>]) -> Answer {
        self.parse("", sql, types).await;
        self.bind("", "", values).await;
        self.describe('P', "").await;
        self.execute("", 0).await;
        self.sync().await
    }
}
