//! A broker that a test plays itself, packet by packet.

use proptest::prelude::*;
use rumqttc::v5::mqttbytes::v5::{ConnAckProperties, PingResp, SubAck};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Decoder;

use super::broker::Client as _;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A broker on loopback.
struct Played {
    listener: TcpListener,
    mqtt: Mqtt,
}

/// One connection to it.
struct Line(Framed<TcpStream, Codec>);

impl Played {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtt://{}", listener.local_addr().unwrap());
        let mqtt = Mqtt {
            url,
            topic: "a/b".to_owned(),
            ca: None,
            client: None,
            user: Some("n1".to_owned()),
            password: None,
        };
        Self { listener, mqtt }
    }

    fn client(&self, subscribe: bool) -> Client {
        Client::new(&self.mqtt, subscribe, Health::new(&self.mqtt.url, None))
    }

    /// Somebody connects, and says who he is.
    async fn accept(&self) -> (Line, Connect, Option<Login>) {
        let (socket, _) = self.listener.accept().await.unwrap();
        let codec = Codec {
            max_incoming_size: None,
            max_outgoing_size: None,
        };
        let mut line = Line(Framed::new(socket, codec));
        let Packet::Connect(connect, None, login) = line.hear().await else {
            panic!("it does not begin with itself");
        };
        (line, connect, login)
    }

    /// Somebody connects, and is told so.
    async fn let_in(&self, properties: Option<ConnAckProperties>) -> Line {
        let (mut line, ..) = self.accept().await;
        line.say(welcome(ConnectReturnCode::Success, properties))
            .await;
        line
    }

    /// Somebody connects and subscribes.
    async fn subscriber(&self) -> Line {
        let mut line = self.let_in(None).await;
        line.subscribed(SubscribeReasonCode::Success(QoS::AtLeastOnce))
            .await;
        line
    }
}

impl Line {
    async fn hear(&mut self) -> Packet {
        self.0.next().await.unwrap().unwrap()
    }

    async fn say(&mut self, packet: Packet) {
        // Who has left does not hear it.
        let _ = self.0.send(packet).await;
    }

    async fn publish(&mut self, topic: &str, payload: &str) {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload.to_owned(), None);
        publish.pkid = 7;
        self.say(Packet::Publish(publish)).await;
    }

    async fn subscribed(&mut self, code: SubscribeReasonCode) -> Subscribe {
        let Packet::Subscribe(subscribe) = self.hear().await else {
            panic!("it does not subscribe");
        };
        let ack = SubAck {
            pkid: subscribe.pkid,
            return_codes: vec![code],
            properties: None,
        };
        self.say(Packet::SubAck(ack)).await;
        subscribe
    }
}

fn welcome(code: ConnectReturnCode, properties: Option<ConnAckProperties>) -> Packet {
    Packet::ConnAck(ConnAck {
        session_present: false,
        code,
        properties,
    })
}

fn with(receive_max: Option<u16>, server_keep_alive: Option<u16>) -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: None,
        receive_max,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}

fn messages(number: usize) -> Vec<Message> {
    let message = |path: usize| Message {
        backend: "vault".parse().unwrap(),
        path: Some(path.to_string()),
        version: None,
    };
    (0..number).map(message).collect()
}

#[tokio::test]
async fn what_is_published_under_our_topic_is_heard_and_all_is_acknowledged() {
    let played = Played::new().await;
    let mut client = played.client(true);
    let broker = async {
        let (mut line, connect, login) = played.accept().await;
        assert!(connect.clean_start && connect.client_id.starts_with("secretfs-"));
        assert_eq!(connect.keep_alive, 15);
        let size = connect.properties.unwrap().max_packet_size;
        assert_eq!(size, Some(MAX_PACKET));
        assert_eq!(login, Some(Login::new("n1", "")));
        line.say(welcome(ConnectReturnCode::Success, None)).await;
        let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
        let [filter] = &line.subscribed(granted).await.filters[..] else {
            panic!("to one topic");
        };
        assert_eq!(
            (filter.path.as_str(), filter.qos),
            ("a/b", QoS::AtLeastOnce)
        );
        assert_eq!(filter.retain_forward_rule, RetainForwardRule::Never);
        line.publish("other", "1").await;
        line.publish("a/b", "2").await;
        for _ in 0..2 {
            let Packet::PubAck(ack) = line.hear().await else {
                panic!("it is acknowledged");
            };
            assert_eq!(ack.pkid, 7);
        }
    };
    let heard = async {
        assert_eq!(client.next().await, Happened::Connected);
        assert_eq!(client.next().await, Happened::Message(b"2".to_vec()));
        assert!(timeout(SECOND / 2, client.next()).await.is_err());
    };
    tokio::join!(broker, heard);
}

#[tokio::test]
async fn a_broker_that_goes_wrong_is_left_and_come_back_to() {
    let played = Played::new().await;
    let mut client = played.client(true);
    let broker = async {
        // It lets nobody in.
        let (mut line, ..) = played.accept().await;
        line.say(welcome(ConnectReturnCode::NotAuthorized, None))
            .await;
        // It does not permit the topic.
        let mut line = played.let_in(None).await;
        line.subscribed(SubscribeReasonCode::NotAuthorized).await;
        // It says what is no packet, at once and later.
        let (mut line, ..) = played.accept().await;
        line.0.get_mut().write_all(&[0; 9]).await.unwrap();
        let mut line = played.subscriber().await;
        line.0.get_mut().write_all(&[0; 9]).await.unwrap();
        // It sends more than it was told to.
        let mut line = played.subscriber().await;
        line.publish("a/b", &"x".repeat(1 << 20)).await;
        // It ends the session.
        let mut line = played.subscriber().await;
        let ended = [0xE0, 2, 0x8B, 0];
        line.0.get_mut().write_all(&ended).await.unwrap();
        played.subscriber().await.publish("a/b", "x").await;
    };
    let heard = async {
        for _ in 0..4 {
            assert!(!client.is_up());
            assert_eq!(client.next().await, Happened::Connected);
            assert!(client.is_up());
            if client.failed < 6 {
                let again = timeout(SECOND / 10, client.next()).await;
                assert!(again.is_err() && !client.is_up(), "{again:?}");
            }
        }
        assert_eq!(client.next().await, Happened::Message(b"x".to_vec()));
        assert_eq!(client.failed, 6);
    };
    tokio::join!(broker, heard);
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_left() {
    let played = Played::new().await;
    let mut client = played.client(false);
    let broker = async {
        let mut line = played.let_in(Some(with(None, Some(1)))).await;
        assert_eq!(line.hear().await, Packet::PingReq(PingReq));
        line.say(Packet::PingResp(PingResp)).await;
        assert_eq!(line.hear().await, Packet::PingReq(PingReq));
        played.accept().await
    };
    let heard = async {
        assert_eq!(client.next().await, Happened::Connected);
        client.next().await
    };
    tokio::select! {
        happened = heard => panic!("{happened:?}"),
        _ = broker => {}
    }
    assert_eq!(client.failed, 1);
}

#[tokio::test]
async fn as_much_is_on_its_way_as_the_broker_takes() {
    let played = Played::new().await;
    let mut client = played.client(false);
    let broker = async {
        let mut line = played.let_in(Some(with(Some(2), None))).await;
        for (some, reason) in [
            (2, PubAckReason::Success),
            (1, PubAckReason::NoMatchingSubscribers),
            (1, PubAckReason::NotAuthorized),
            (1, PubAckReason::Success),
        ] {
            let mut acks = Vec::new();
            for _ in 0..some {
                let Packet::Publish(publish) = line.hear().await else {
                    panic!("it publishes");
                };
                assert_eq!(
                    (publish.qos, &publish.topic[..]),
                    (QoS::AtLeastOnce, &b"a/b"[..])
                );
                assert!(!publish.retain);
                let mut ack = PubAck::new(publish.pkid, None);
                ack.reason = reason;
                acks.push(ack);
            }
            let more = timeout(SECOND / 10, line.hear()).await;
            assert!(more.is_err(), "{more:?}");
            for ack in acks {
                line.say(Packet::PubAck(ack)).await;
            }
        }
        drop(line);
    };
    let sent = async {
        assert!(!client.send(&messages(1)).await);
        assert_eq!(client.next().await, Happened::Connected);
        assert!(client.send(&messages(3)).await);
        assert!(!client.send(&messages(1)).await);
        assert!(client.is_up() && client.send(&messages(1)).await);
        while client.send(&messages(1)).await {}
        assert!(!client.is_up());
    };
    tokio::join!(broker, sent);
}

proptest! {
    #[test]
    fn no_packet_is_too_odd(first in any::<u8>(), rest in proptest::collection::vec(any::<u8>(), 0..120)) {
        let length = u8::try_from(rest.len()).unwrap();
        let mut bytes = BytesMut::from(&[&[first, length], &rest[..]].concat()[..]);
        let mut codec = Codec { max_incoming_size: Some(MAX_PACKET), max_outgoing_size: None };
        while let Ok(Some(_)) = codec.decode(&mut bytes) {}
    }
}
