//! MQTT 5: a client of one broker.
//!
//! The packets are rumqttc's, and the connection is ours: what rumqttc brings of TLS does not go with the rest of ours.
//! Sessions are clean, so the broker keeps nothing for us, and after each connection we look at what was missed. It is
//! told how large a packet may be, and leaves out what is larger; one that does not is left.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use rumqttc::v5::mqttbytes::v5::{
    Codec, ConnAck, Connect, ConnectProperties, ConnectReturnCode, Filter, Login, Packet, PingReq,
    PubAck, PubAckReason, Publish, RetainForwardRule, Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{self, QoS};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::codec::Framed;
use tokio_util::either::Either;
use uuid::Uuid;

use super::broker::{self, CONNECT, Happened, Health, Mqtt, PULSE, SEND};
use super::message::Message;
use super::tls;

/// The longest packet, in bytes: a message, its topic and what else belongs to it.
const MAX_PACKET: u32 = 16 << 10;

/// How many messages are on their way at most before the broker has said that it has them.
const WINDOW: usize = 64;

/// A connection that has held for so long was a good one: when it breaks, the pauses begin anew.
const GOOD: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the broker refuses the topic")]
    Refused,
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("{0}")]
    Odd(#[from] mqttbytes::Error),
    #[error("the broker lets nobody in: {0:?}")]
    Shut(ConnectReturnCode),
    #[error("the connection broke")]
    Ended,
    #[error("the broker says nothing")]
    Quiet,
}

/// A client of one broker.
pub(super) struct Client {
    mqtt: Mqtt,
    subscribe: bool,
    state: State,
    /// Connections in a row that failed or did not hold.
    failed: usize,
    health: Health,
}

enum State {
    /// It is waited for a while first.
    Connecting(BoxFuture<'static, Result<Wire, Fault>>),
    Connected(Box<Wire>),
}

impl Client {
    /// Connects when it is asked for what happens next.
    pub(super) fn new(mqtt: &Mqtt, subscribe: bool, health: Health) -> Self {
        Self {
            mqtt: mqtt.clone(),
            subscribe,
            state: State::Connecting(connect(mqtt.clone(), subscribe, 0)),
            failed: 0,
            health,
        }
    }

    fn lost(&mut self, fault: &Fault) {
        if matches!(fault, Fault::Refused) {
            self.health.refused();
        }
        self.health.down(&fault.to_string());
        let good = matches!(&self.state, State::Connected(wire) if wire.since.elapsed() >= GOOD);
        self.failed = if good {
            1
        } else {
            self.failed.saturating_add(1)
        };
        let connecting = connect(self.mqtt.clone(), self.subscribe, self.failed);
        self.state = State::Connecting(connecting);
    }
}

impl broker::Client for Client {
    async fn next(&mut self) -> Happened {
        loop {
            let fault = match &mut self.state {
                State::Connecting(connecting) => match connecting.await {
                    Ok(wire) => {
                        self.state = State::Connected(Box::new(wire));
                        self.health.up();
                        return Happened::Connected;
                    }
                    Err(fault) => fault,
                },
                State::Connected(wire) => match wire.message().await {
                    Ok(message) => return Happened::Message(message),
                    Err(fault) => fault,
                },
            };
            self.lost(&fault);
        }
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Connected(_))
    }

    async fn send(&mut self, messages: &[Message]) -> bool {
        let State::Connected(wire) = &mut self.state else {
            return false;
        };
        let published = timeout(SEND, wire.publish(messages)).await;
        match published.unwrap_or(Err(Fault::Quiet)) {
            Ok(()) => true,
            // The connection is as good as before.
            Err(Fault::Refused) => {
                self.health.refused();
                false
            }
            Err(fault) => {
                self.lost(&fault);
                false
            }
        }
    }
}

/// A connection that the broker has accepted.
struct Wire {
    framed: Framed<Socket, Codec>,
    topic: String,
    since: Instant,
    /// How often the broker is asked whether it is there.
    pulse: Duration,
    /// When it is asked next.
    beat: Instant,
    /// It has said something since it was asked last.
    heard: bool,
    /// How many messages the broker takes at once.
    window: usize,
}

type Socket = Either<TcpStream, TlsStream<TcpStream>>;

impl Wire {
    /// The next message. Nothing is lost if the future is dropped.
    async fn message(&mut self) -> Result<Vec<u8>, Fault> {
        loop {
            let beat = self.beat;
            let packet = tokio::select! {
                packet = self.packet() => packet?,
                () = sleep_until(beat) => {
                    if !std::mem::take(&mut self.heard) {
                        return Err(Fault::Quiet);
                    }
                    self.beat = Instant::now() + self.pulse;
                    // What is fed goes out before the next packet is read, so there is always room for it.
                    self.framed.feed(Packet::PingReq(PingReq)).await?;
                    continue;
                }
            };
            if let Packet::Publish(publish) = packet {
                if publish.qos == QoS::AtLeastOnce {
                    let ack = PubAck::new(publish.pkid, None);
                    self.framed.feed(Packet::PubAck(ack)).await?;
                }
                if publish.topic == self.topic {
                    return Ok(publish.payload.to_vec());
                }
            }
        }
    }

    /// Publishes them, and waits until the broker has said that it has them.
    async fn publish(&mut self, messages: &[Message]) -> Result<(), Fault> {
        let mut refused = false;
        for some in messages.chunks(self.window) {
            for (message, number) in some.iter().zip(1..) {
                let mut publish =
                    Publish::new(&self.topic, QoS::AtLeastOnce, message.to_json(), None);
                publish.pkid = number;
                self.framed.feed(Packet::Publish(publish)).await?;
            }
            let mut missing = some.len();
            while missing > 0 {
                if let Packet::PubAck(ack) = self.packet().await? {
                    missing -= 1;
                    refused |= !matches!(
                        ack.reason,
                        PubAckReason::Success | PubAckReason::NoMatchingSubscribers
                    );
                }
            }
        }
        match refused {
            true => Err(Fault::Refused),
            false => Ok(()),
        }
    }

    /// The next packet, after what is to be sent is on its way.
    async fn packet(&mut self) -> Result<Packet, Fault> {
        self.framed.flush().await?;
        let packet = self.framed.next().await.ok_or(Fault::Ended)??;
        self.heard = true;
        if matches!(packet, Packet::Disconnect(_)) {
            return Err(Fault::Ended);
        }
        Ok(packet)
    }
}

/// Connects to the broker, after so many attempts that failed.
fn connect(mqtt: Mqtt, subscribe: bool, failed: usize) -> BoxFuture<'static, Result<Wire, Fault>> {
    Box::pin(async move {
        sleep(broker::pause(failed + 1)).await;
        let opened = timeout(CONNECT, open(mqtt, subscribe)).await;
        opened.unwrap_or(Err(Fault::Quiet))
    })
}

async fn open(mqtt: Mqtt, subscribe: bool) -> Result<Wire, Fault> {
    let (address, secure) = match mqtt.url.strip_prefix("mqtts://") {
        Some(address) => (address.to_owned(), true),
        None => (mqtt.url.trim_start_matches("mqtt://").to_owned(), false),
    };
    let topic = mqtt.topic.clone();
    let read = tokio::task::spawn_blocking(move || {
        let tls = secure.then(|| tls::connector(mqtt.ca.as_deref(), mqtt.client.as_ref()));
        Ok::<_, io::Error>((tls.transpose()?, login(mqtt.user, mqtt.password)?))
    });
    let (tls, login) = read.await.map_err(io::Error::other)??;
    let tcp = TcpStream::connect(&address).await?;
    tcp.set_nodelay(true)?;
    let socket = match tls {
        Some(tls) => Either::Right(shake_hands(&tls, &address, tcp).await?),
        None => Either::Left(tcp),
    };
    let codec = Codec {
        max_incoming_size: Some(MAX_PACKET),
        max_outgoing_size: None,
    };
    let mut wire = Wire {
        framed: Framed::new(socket, codec),
        topic,
        since: Instant::now(),
        pulse: PULSE,
        beat: Instant::now() + PULSE,
        heard: true,
        window: WINDOW,
    };
    wire.framed.feed(hello(login)).await?;
    let Packet::ConnAck(ack) = wire.packet().await? else {
        return Err(Fault::Ended);
    };
    if ack.code != ConnectReturnCode::Success {
        return Err(Fault::Shut(ack.code));
    }
    wire.agree(&ack);
    if subscribe {
        wire.subscribe().await?;
    }
    Ok(wire)
}

async fn shake_hands(
    tls: &TlsConnector,
    address: &str,
    tcp: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    tls.connect(name, tcp).await
}

/// What we show to be let in.
fn login(user: Option<String>, password: Option<PathBuf>) -> io::Result<Option<Login>> {
    let Some(user) = user else {
        return Ok(None);
    };
    let password = match password {
        Some(file) => broker::credentials(&file)?.trim().to_owned(),
        None => String::new(),
    };
    Ok(Some(Login::new(user, password)))
}

/// The first packet.
fn hello(login: Option<Login>) -> Packet {
    let properties = ConnectProperties {
        max_packet_size: Some(MAX_PACKET),
        ..ConnectProperties::default()
    };
    let connect = Connect {
        // It may be late by half of this again.
        keep_alive: u16::try_from(PULSE.as_secs()).unwrap_or(u16::MAX),
        // Of two with the same the broker would leave one out.
        client_id: format!("secretfs-{}", Uuid::new_v4()),
        clean_start: true,
        properties: Some(properties),
    };
    Packet::Connect(connect, None, login)
}

impl Wire {
    /// Keeps to what the broker can do.
    fn agree(&mut self, ack: &ConnAck) {
        let Some(properties) = &ack.properties else {
            return;
        };
        if let Some(seconds) = properties.server_keep_alive.filter(|seconds| *seconds > 0) {
            self.pulse = PULSE.min(Duration::from_secs(seconds.into()));
            self.beat = Instant::now() + self.pulse;
        }
        if let Some(window) = properties.receive_max {
            self.window = WINDOW.min(usize::from(window)).max(1);
        }
    }

    async fn subscribe(&mut self) -> Result<(), Fault> {
        let mut filter = Filter::new(&self.topic, QoS::AtLeastOnce);
        // What was said before we came is looked at anyway.
        filter.retain_forward_rule = RetainForwardRule::Never;
        let mut subscribe = Subscribe::new(filter, None);
        subscribe.pkid = 1;
        self.framed.feed(Packet::Subscribe(subscribe)).await?;
        loop {
            if let Packet::SubAck(ack) = self.packet().await? {
                let granted =
                    |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
                return match ack.return_codes.iter().all(granted) {
                    true => Ok(()),
                    false => Err(Fault::Refused),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests;
