/* Both ends of the MQTT measurements, versions 3.1.1 and 5:
 *
 *     mqtt_ends serve PORT
 *     mqtt_ends publish PORT 4|5 QOS SECONDS CONNECTIONS 0|1
 *
 * The server is a sink that speaks the protocol: it reads every PUBLISH, acknowledges those with QoS 1 (as many
 * as it has read in one write), and answers SUBSCRIBE and PINGREQ. A PUBLISH to the topic `seen` it answers with
 * one that says how many packets it was sent on the connection, and the properties of this one in hexadecimal.
 *
 * The publisher saturates: with QoS 0 it writes BATCH packets at once for as long as the socket takes them, with
 * QoS 1 it keeps WINDOW in flight on each connection (the default of mosquitto's clients and broker). At the end
 * each connection asks what was `seen`, so that what is counted has arrived. The last argument is 1 where each
 * connection is to begin with the byte that makes it opaque. It prints one line of JSON.
 *
 * Packets are as chapter 3 of MQTT 3.1.1 and of MQTT 5.0 says.
 */
#include "ends.h"

enum { CONNECT = 1, CONNACK, PUBLISH, PUBACK, SUBSCRIBE = 8, SUBACK, PINGREQ = 12, PINGRESP, DISCONNECT };
enum { PAYLOAD = 100, BATCH = 64, WINDOW = 20, LARGEST = 1024 };

static const char TOPIC[] = "bench/sensor/7", SEEN[] = "seen";

/* A packet that is whole: its kind and flags, and what follows the fixed header. */
typedef struct {
    int kind, flags;
    const unsigned char *body;
    size_t size;
} Packet;

/* The bytes of the first packet, 0 when it is not whole, -1 when it is none. */
static ssize_t first_packet(Packet *p, const unsigned char *at, size_t there) {
    size_t size = 0, used = 1;
    for (int shift = 0;; shift += 7) {
        if (used >= there) return 0;
        if (shift > 21) return -1;
        size |= (size_t)(at[used] & 0x7F) << shift;
        if (!(at[used++] & 0x80)) break;
    }
    if (size > ROOM - 8) return -1;
    if (there - used < size) return 0;
    *p = (Packet){at[0] >> 4, at[0] & 0x0F, at + used, size};
    return (ssize_t)(used + size);
}

static unsigned identifier(const unsigned char *at) { return (unsigned)at[0] << 8 | at[1]; }

static size_t put_head(unsigned char *at, int first, size_t size) {
    size_t used = 0;
    at[used++] = (unsigned char)first;
    do {
        at[used++] = (unsigned char)((size & 0x7F) | (size > 0x7F ? 0x80 : 0));
        size >>= 7;
    } while (size);
    return used;
}

static size_t put_publish(unsigned char *at, int version, int qos, unsigned id, const char *topic, const void *payload,
                          size_t size) {
    size_t name = strlen(topic);
    unsigned char *a = at + put_head(at, PUBLISH << 4 | qos << 1, 2 + name + (qos ? 2 : 0) + (version == 5) + size);
    *a++ = (unsigned char)(name >> 8), *a++ = (unsigned char)name;
    memcpy(a, topic, name), a += name;
    if (qos) *a++ = (unsigned char)(id >> 8), *a++ = (unsigned char)id;
    if (version == 5) *a++ = 0; /* no properties */
    memcpy(a, payload, size);
    return (size_t)(a - at) + size;
}

/* Where the properties of a PUBLISH begin and how long they are, and its topic; 0 when it is malformed. */
typedef struct {
    const unsigned char *topic, *properties, *payload;
    size_t topic_size, properties_size, payload_size;
    unsigned id;
} Publish;

static int read_publish(Publish *out, const Packet *p, int version) {
    const unsigned char *at = p->body, *end = p->body + p->size;
    if (end - at < 2) return 0;
    out->topic_size = identifier(at), out->topic = at + 2;
    at += 2 + out->topic_size;
    out->id = 0, out->properties_size = 0;
    if (p->flags & 0x06) {
        if (end - at < 2) return 0;
        out->id = identifier(at), at += 2;
        if (out->id == 0) return 0;
    }
    if (version == 5) {
        for (int shift = 0;; shift += 7) {
            if (at >= end || shift > 21) return 0;
            out->properties_size |= (size_t)(*at & 0x7F) << shift;
            if (!(*at++ & 0x80)) break;
        }
    }
    out->properties = at, out->payload = at + out->properties_size;
    if (out->payload > end) return 0;
    out->payload_size = (size_t)(end - out->payload);
    return 1;
}

static int is_topic(const Publish *p, const char *topic) {
    return p->topic_size == strlen(topic) && !memcmp(p->topic, topic, p->topic_size);
}

typedef struct {
    Connection connection;
    int version;
    size_t published;
} Session;

static size_t answer_seen(unsigned char *at, const Session *s, const Publish *p) {
    char text[LARGEST];
    int size = snprintf(text, sizeof text, "%zu ", s->published);
    for (size_t i = 0; i < p->properties_size && size + 3 < LARGEST; i++)
        size += sprintf(text + size, "%02x", p->properties[i]);
    return put_publish(at, s->version, 0, 0, SEEN, text, (size_t)size);
}

static ssize_t sink(Connection *c, unsigned char *data, size_t there) {
    static unsigned char answers[ROOM + 4 * LARGEST]; /* no answer but that to `seen` is longer than what asks for it */
    Session *s = (Session *)c;
    size_t used = 0, said = 0;
    Packet p;
    Publish published;
    for (ssize_t size; (size = first_packet(&p, data + used, there - used)) != 0; used += (size_t)size) {
        if (size < 0 || (p.kind == CONNECT) != (s->version == 0)) return -1;
        unsigned char *at = answers + said;
        switch (p.kind) {
        case CONNECT:
            if (p.size < 10 || memcmp(p.body, "\0\4MQTT", 6)) return -1;
            s->version = p.body[6];
            said += put_head(at, CONNACK << 4, s->version == 5 ? 3 : 2);
            memset(answers + said, 0, 3), said += s->version == 5 ? 3 : 2;
            break;
        case PUBLISH:
            if (!read_publish(&published, &p, s->version)) return -1;
            s->published++;
            if (p.flags & 0x06) {
                at[0] = PUBACK << 4, at[1] = 2, at[2] = (unsigned char)(published.id >> 8), at[3] = (unsigned char)published.id;
                said += 4;
            }
            if (is_topic(&published, SEEN)) said += answer_seen(answers + said, s, &published);
            break;
        case SUBSCRIBE: /* one topic filter */
            said += put_head(at, SUBACK << 4, s->version == 5 ? 4 : 3);
            memcpy(answers + said, p.body, 2), memset(answers + said + 2, 0, 2), said += s->version == 5 ? 4 : 3;
            break;
        case PINGREQ:
            said += put_head(at, PINGRESP << 4, 0);
            break;
        default: /* DISCONNECT, and what a publisher has no cause to send */
            return -1;
        }
        if (said > ROOM) return -1;
    }
    return said && !send_all(c->socket, answers, said) ? -1 : (ssize_t)used;
}

typedef struct {
    Connection connection;
    size_t sent, answered; /* packets */
    size_t unsent;         /* bytes of the batch that is being written */
    unsigned next_id, awaited_id;
    int closing, done;
    double asked[1 << 16]; /* by packet identifier */
} Publisher;

static int version, qos;
static char payload[PAYLOAD];
static unsigned char batch[BATCH * LARGEST];
static size_t batch_size;

static void ask_what_was_seen(Publisher *p) {
    unsigned char asked[LARGEST];
    p->closing = 1;
    if (!send_all(p->connection.socket, asked, put_publish(asked, version, 0, 0, SEEN, "?", 1))) die("send");
}

/* QoS 0: batches for as long as the socket takes them. Whether it takes no more for now. */
static int write_batches(Publisher *p, double end) {
    for (;;) {
        if (p->unsent == 0) {
            if (now() >= end) return 0;
            p->unsent = batch_size;
        }
        ssize_t sent = send(p->connection.socket, batch + batch_size - p->unsent, p->unsent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) return 1;
        if (sent < 0) die("send");
        p->unsent -= (size_t)sent;
        if (p->unsent == 0) {
            p->sent += BATCH;
            return 1; /* the next connection's turn */
        }
    }
}

/* QoS 1: so many, in one write. */
static void publish(Publisher *p, size_t count) {
    static unsigned char packets[WINDOW * LARGEST];
    size_t size = 0;
    double t = now();
    for (size_t i = 0; i < count; i++) {
        p->next_id = p->next_id % 0xFFFF + 1;
        p->asked[p->next_id] = t;
        size += put_publish(packets + size, version, 1, p->next_id, TOPIC, payload, PAYLOAD);
    }
    p->sent += count;
    if (!send_all(p->connection.socket, packets, size)) die("send");
}

/* Reads what has come: the acknowledgements, counted, and at the end what was seen. */
static size_t acknowledged(Publisher *p, Latencies *latencies) {
    ssize_t came = heard(&p->connection);
    if (came == 0) return 0;
    errno = 0;
    if (came < 0) die("connection was closed");
    size_t used = 0, count = 0;
    Packet packet;
    Publish answer;
    double t = now();
    for (ssize_t size; (size = first_packet(&packet, room + used, (size_t)came - used)) != 0; used += (size_t)size) {
        if (size < 0) die("packet");
        if (packet.kind == PUBACK && packet.size >= 2) {
            p->awaited_id = p->awaited_id % 0xFFFF + 1;
            if (identifier(packet.body) != p->awaited_id) die("packet identifier of a PUBACK");
            note(latencies, t - p->asked[p->awaited_id]);
            count++;
        } else if (packet.kind == PUBLISH && read_publish(&answer, &packet, version) && is_topic(&answer, SEEN)) {
            if (strtoull((const char *)answer.payload, NULL, 10) != p->sent + 1) die("number of packets that arrived");
            p->done = 1;
        } else
            die("packet");
    }
    keep(&p->connection, room + used, (size_t)came - used);
    p->answered += count;
    return count;
}

static void begin_session(Publisher *p, const char *port, int number, int opaque) {
    unsigned char said[64], heard_back[5];
    size_t id = (size_t)sprintf((char *)said + 32, "bench-%d", number), body = 10 + (version == 5) + 2 + id;
    unsigned char *at = said + put_head(said, CONNECT << 4, body);
    memcpy(at, "\0\4MQTT", 6), at[6] = (unsigned char)version, at[7] = 2; /* clean start */
    at[8] = 0, at[9] = 60, at += 10;                                     /* keep-alive */
    if (version == 5) *at++ = 0;
    at[0] = 0, at[1] = (unsigned char)id, memmove(at + 2, said + 32, id), at += 2 + id;
    p->connection.socket = connected(port, opaque);
    /* A publisher that saturates is ahead by what the sockets hold; megabytes of it would have to drain at the end. */
    int ahead = 64 * 1024;
    if (setsockopt(p->connection.socket, SOL_SOCKET, SO_SNDBUF, &ahead, sizeof ahead) < 0) die("SO_SNDBUF");
    if (!send_all(p->connection.socket, said, (size_t)(at - said))) die("send");
    ssize_t due = version == 5 ? 5 : 4;
    if (recv(p->connection.socket, heard_back, (size_t)due, MSG_WAITALL) != due) die("CONNACK");
    errno = 0;
    if (heard_back[0] != CONNACK << 4 || heard_back[3] != 0) die("CONNACK");
}

static void run(const char *port, double seconds, int connections, int opaque) {
    struct epoll_event events[EVENTS];
    Latencies latencies = {0};
    int poll = epoll_create1(0), running = connections;
    Publisher *publishers = room_for((size_t)connections * sizeof *publishers);
    memset(payload, 'm', PAYLOAD);
    for (int i = 0; i < BATCH; i++) batch_size += put_publish(batch + batch_size, version, 0, 0, TOPIC, payload, PAYLOAD);
    for (int i = 0; i < connections; i++) {
        begin_session(&publishers[i], port, i, opaque);
        watch(poll, EPOLL_CTL_ADD, publishers[i].connection.socket, EPOLLIN | (qos ? 0 : EPOLLOUT), &publishers[i]);
    }
    double start = now(), end = start + seconds;
    for (int i = 0; qos && i < connections; i++) publish(&publishers[i], WINDOW);
    while (running) {
        int count = epoll_wait(poll, events, EVENTS, PATIENCE_SECONDS * 1000);
        errno = 0;
        if (count <= 0) die("nothing heard for 30 s");
        for (int i = 0; i < count; i++) {
            Publisher *p = events[i].data.ptr;
            if (events[i].events & EPOLLOUT && !p->closing && !write_batches(p, end)) {
                watch(poll, EPOLL_CTL_MOD, p->connection.socket, EPOLLIN, p);
                ask_what_was_seen(p);
            }
            if (!(events[i].events & ~EPOLLOUT)) continue;
            size_t more = acknowledged(p, &latencies);
            if (qos && more && now() < end)
                publish(p, more);
            else if (qos && !p->closing && p->answered == p->sent)
                ask_what_was_seen(p);
            if (p->done) {
                running--;
                watch(poll, EPOLL_CTL_DEL, p->connection.socket, 0, NULL);
            }
        }
    }
    double took = now() - start;
    size_t sent = 0;
    for (int i = 0; i < connections; i++) sent += publishers[i].sent;
    printf("{\"published\": %zu, \"seconds\": %.6f, ", sent, took);
    print_percentiles(&latencies);
    printf("}\n");
    for (int i = 0; i < connections; i++) { /* in order, as a client leaves */
        static const unsigned char leaving[] = {DISCONNECT << 4, 0};
        send_all(publishers[i].connection.socket, leaving, sizeof leaving);
    }
}

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "serve"))
        serve(arguments[2], sizeof(Session), sink);
    else if (count == 8 && !strcmp(arguments[1], "publish")) {
        version = atoi(arguments[3]), qos = atoi(arguments[4]);
        run(arguments[2], atof(arguments[5]), atoi(arguments[6]), atoi(arguments[7]));
    } else
        die("usage: see the head of the source");
    return 0;
}
