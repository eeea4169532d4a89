//! An STS on loopback that says what it is told to, also what is no HTTP. Whatever it answers, errors too, holds the token
//! that it was sent and a credential of its own, so that whoever quotes an answer tells a secret.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sidemint::clock::{Clock as _, ManualClock};
use sidemint::identity::task_token;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How it answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OnCall {
    /// As STS does.
    Give,
    /// As STS does, but for this text in place of that; `{secret}` and `{token}` are put in.
    GiveWith(&'static str, &'static str),
    /// An error of STS: status and code.
    Refuse(u16, &'static str),
    /// A status, a header line or none, and a body; `{secret}` and `{token}` are put in.
    Say(u16, &'static str, &'static str),
    /// An answer that is longer than any of STS's.
    SayTooMuch,
    /// These bytes, with no HTTP around them.
    Babble(&'static str),
    /// Never.
    Hang,
    /// A good answer, one byte a second.
    Drip,
    /// Gives, and the connection breaks in the middle of the answer.
    BreakOff,
    /// Gives, and the connection breaks before the answer.
    Lose,
}

#[derive(Debug)]
struct State {
    on_call: OnCall,
    script: VecDeque<OnCall>,
    calls: usize,
    given: usize,
    secrets: Vec<String>,
}

/// The STS.
#[derive(Clone, Debug)]
pub(crate) struct Sts {
    pub(crate) address: SocketAddr,
    clock: ManualClock,
    state: Arc<Mutex<State>>,
}

/// What one answer is about.
struct Given {
    token: String,
    session: String,
    key: String,
    secret: String,
    session_token: String,
}

fn random(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    task_token::random(&mut buffer).unwrap();
    STANDARD.encode(buffer)
}

impl Sts {
    /// Starts one whose time is `clock`'s.
    pub(crate) async fn start(clock: ManualClock) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(Mutex::new(State {
            on_call: OnCall::Give,
            script: VecDeque::new(),
            calls: 0,
            given: 0,
            secrets: Vec::new(),
        }));
        let sts = Self { address: listener.local_addr().unwrap(), clock, state };
        let server = sts.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.answer(stream).await });
            }
        });
        sts
    }

    pub(crate) fn on_call(&self, on_call: OnCall) {
        self.state.lock().unwrap().on_call = on_call;
    }

    /// How the next calls are answered, one each; then as [`Sts::on_call`] says.
    pub(crate) fn next(&self, answers: impl IntoIterator<Item = OnCall>) {
        self.state.lock().unwrap().script.extend(answers);
    }

    /// How many sessions it has begun, whoever heard of them.
    pub(crate) fn given(&self) -> usize {
        self.state.lock().unwrap().given
    }

    pub(crate) fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }

    /// Every secret that it ever gave.
    pub(crate) fn secrets(&self) -> Vec<String> {
        self.state.lock().unwrap().secrets.clone()
    }

    fn give(&self, form: &str) -> (OnCall, Given) {
        let field = |name: &str| {
            let found = form.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        let given = Given {
            token: field("WebIdentityToken"),
            session: field("RoleSessionName"),
            key: format!("ASIA{}", random(30).replace(['/', '+', '='], "7")),
            secret: random(30),
            session_token: random(300),
        };
        let mut state = self.state.lock().unwrap();
        state.calls += 1;
        state.secrets.extend([given.key.clone(), given.secret.clone(), given.session_token.clone()]);
        let on_call = state.script.pop_front().unwrap_or(state.on_call);
        let gives =
            matches!(on_call, OnCall::Give | OnCall::GiveWith(..) | OnCall::Drip | OnCall::BreakOff | OnCall::Lose);
        state.given += usize::from(gives);
        (on_call, given)
    }

    async fn answer(&self, mut stream: TcpStream) {
        let Some(form) = read_form(&mut stream).await else { return };
        let (on_call, given) = self.give(&form);
        let good = self.good(&given);
        let bytes = match on_call {
            OnCall::Give => http(200, "", &good),
            OnCall::GiveWith(this, that) => {
                assert!(good.contains(this), "{this}");
                http(200, "", &good.replace(this, &given.fill(that)))
            }
            OnCall::Refuse(status, code) => http(status, "", &given.error(code)),
            OnCall::Say(status, header, body) => http(status, &given.fill(header), &given.fill(body)),
            OnCall::SayTooMuch => http(200, "", &(good.clone() + &good.repeat(200))),
            OnCall::Babble(text) => given.fill(text).into_bytes(),
            OnCall::Hang => std::future::pending().await,
            OnCall::Drip => {
                for byte in http(200, "", &good) {
                    self.clock.sleep(Duration::from_secs(1)).await;
                    if stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                }
                return;
            }
            OnCall::BreakOff => {
                let whole = http(200, "", &good);
                whole[..whole.len() - 40].to_vec()
            }
            OnCall::Lose => return,
        };
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
    }

    fn good(&self, given: &Given) -> String {
        let Given { key, secret, session_token, session, .. } = given;
        let expires = (self.clock.now() + Duration::from_secs(900)).floor_to_second();
        format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}\
             </SecretAccessKey><SessionToken>{session_token}</SessionToken><Expiration>{expires}</Expiration></Credentials>\
             <AssumedRoleUser><Arn>arn:aws:sts::111122223333:assumed-role/tests/{session}</Arn>\
             <AssumedRoleId>AROA:{session}</AssumedRoleId></AssumedRoleUser>\
             <SubjectFromWebIdentityToken>{}</SubjectFromWebIdentityToken><Audience>sts.amazonaws.com</Audience>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
            crate::policy_files::REPORT
        )
    }
}

impl Given {
    fn fill(&self, text: &str) -> String {
        text.replace("{secret}", &self.secret).replace("{token}", &self.token).replace("{session}", &self.session_token)
    }

    fn error(&self, code: &str) -> String {
        format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{}</Code>\
             <Message>{} {} {}</Message></Error><RequestId>{}</RequestId></ErrorResponse>",
            self.fill(code),
            self.token,
            self.secret,
            self.session_token,
            self.token,
        )
    }
}

fn http(status: u16, header: &str, body: &str) -> Vec<u8> {
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let length = body.len();
    format!("HTTP/1.1 {status} Said\r\n{header}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// The body of the request, read to its end.
async fn read_form(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(body.to_owned());
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
        }
    }
}
