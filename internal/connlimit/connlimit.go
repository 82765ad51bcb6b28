// Package connlimit bounds the connections of an HTTPS server: of all, of one
// holder, and of those in their handshakes.
package connlimit

import (
	"container/list"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Limits are how many connections there may be.
type Limits struct {
	All        int // at once
	Each       int // of these, of one holder
	Handshakes int // under way, besides
}

// Check reports limits that make no sense.
func (l Limits) Check() error {
	if l.All < 1 || l.Each < 1 || l.Each > l.All || l.Handshakes < 1 {
		return errors.New("limits of connections: there are some, a holder has some of them and not more than all, and handshakes")
	}
	return nil
}

// Why connections were closed. A holder that has as many as it may is named by
// what it is: Config.Holder.
const (
	Idle      = "idle"      // the longest idle one made way
	Handshake = "handshake" // the one longest in its handshake made way
	Refused   = "refused"   // a new one: none could make way
)

// Config says what is bounded.
type Config struct {
	Limits Limits
	Holder string // what a holder is: one more reason
	// Of is whose a connection is.
	Of func(net.Conn, tls.ConnectionState) (string, error)
	// Anybody can connect. Then a request by itself keeps no connection from making
	// way, or who sends half of one on each would keep all others out: Hold does.
	Anybody bool
	// Closed is told why a connection was closed.
	Closed func(why string)
}

// Certificate is whose a connection is by its client's certificate.
func Certificate(_ net.Conn, s tls.ConnectionState) (string, error) {
	if len(s.PeerCertificates) == 0 {
		return "", errors.New("no client certificate")
	}
	leaf := sha256.Sum256(s.PeerCertificates[0].Raw)
	return string(leaf[:]), nil
}

// Address is whose a connection is by where it comes from.
func Address(conn net.Conn, _ tls.ConnectionState) (string, error) {
	return Network(conn.RemoteAddr().String()), nil
}

// Network is what of an address (host:port) is one customer's of a provider: of
// IPv4 all of it, of IPv6 a /64. What is no address is "".
func Network(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return ""
	}
	return prefix.String()
}

// Limiter keeps the number of connections within limits. A connection costs some
// tens of kilobytes, whatever it does: who comes when there are too many takes the
// place of the one that has been idle for longest, and only when none is, is refused.
// Where anybody can connect, one is idle unless it is held, since it last began or
// ended a request.
type Limiter struct {
	config Config

	mu       sync.Mutex
	of       map[net.Conn]*connection // by what lies under TLS
	fresh    list.List                // of *connection: in their handshakes, or before their first request, oldest first
	idle     list.List                // of *connection: established, without a request, idle for longest first
	holders  map[string]*holder
	verified int // established
}

type connection struct {
	under  net.Conn
	fresh  *list.Element // in the handshakes
	holder *holder       // nil: among the handshakes
	idle   *list.Element // in the list of all
	own    *list.Element // in the holder's
	held   int
}

// holder is who has connections.
type holder struct {
	key  string
	n    int
	idle list.List // of *connection
}

var errTooMany = errors.New("too many connections")

// New makes a limiter, for one server.
func New(c Config) *Limiter {
	return &Limiter{config: c, of: map[net.Conn]*connection{}, holders: map[string]*holder{}}
}

// Bound makes a server keep to the limits. Its TLS configuration must be there.
func (c *Limiter) Bound(h *http.Server) {
	h.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, under(conn))
	}
	h.ConnState = func(conn net.Conn, state http.ConnState) {
		if t, ok := conn.(*tls.Conn); ok && state == http.StateActive {
			c.began(t)
		}
		c.state(under(conn), state)
	}
	base := h.TLSConfig.Clone()
	base.NextProtos = []string{"h2", "http/1.1"} // as the server itself would say
	h.TLSConfig = base.Clone()
	h.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		conn := hello.Conn
		own := base.Clone()
		verify := base.VerifyConnection
		own.VerifyConnection = func(s tls.ConnectionState) error {
			if verify != nil {
				if err := verify(s); err != nil {
					return err
				}
			}
			key, err := c.config.Of(conn, s)
			if err != nil {
				return err
			}
			if c.config.Anybody {
				return c.establish(conn, key)
			}
			return c.room(key)
		}
		return own, nil
	}
}

// began counts a connection when its first request begins, or HTTP/2 does. Then the
// handshake has ended: the client has the certificate's key. While a certificate is
// looked at, its signature is not checked yet, and whoever has a copy of it could
// make its holder's connections make way.
func (c *Limiter) began(t *tls.Conn) {
	conn := t.NetConn()
	c.mu.Lock()
	k := c.of[conn]
	known := k == nil || k.holder != nil
	c.mu.Unlock()
	if known {
		return
	}
	key, err := c.config.Of(conn, t.ConnectionState())
	if err == nil {
		err = c.establish(conn, key)
	}
	if err != nil {
		_ = conn.Close() // whoever serves it is told by that
	}
}

// room refuses whom establish would refuse, in the handshake, which says more to a
// client than a connection that is closed. It counts nothing and nobody makes way.
func (c *Limiter) room(key string) error {
	c.mu.Lock()
	_, why, ok := c.place(c.holders[key])
	c.mu.Unlock()
	if !ok {
		c.config.Closed(why)
		return errTooMany
	}
	return nil
}

// place says who must make way for one more connection of a holder, which may be
// nil, and why, or that there is no place.
func (c *Limiter) place(h *holder) (gone *connection, why string, ok bool) {
	switch {
	case h != nil && h.n >= c.config.Limits.Each:
		why, gone = c.config.Holder, oldest(&h.idle)
	case c.verified >= c.config.Limits.All:
		if why, gone = Idle, oldest(&c.idle); gone == nil {
			why = Refused
		}
	}
	return gone, why, why == "" || gone != nil
}

// connKey is where a request's connection stands in its context.
type connKey struct{}

// Hold keeps the connection of a request, by the request's context, from making way
// until release, which must be called.
func (c *Limiter) Hold(ctx context.Context) (release func()) {
	conn, _ := ctx.Value(connKey{}).(net.Conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.of[conn]
	if k == nil {
		return func() {} // closed by us in the meantime
	}
	k.held++
	c.busy(k)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		k.held--
		c.rest(k)
	}
}

func under(conn net.Conn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return conn
}

// state follows a connection as the server tells.
func (c *Limiter) state(conn net.Conn, state http.ConnState) {
	var full *connection
	c.mu.Lock()
	k := c.of[conn]
	switch {
	case state == http.StateNew:
		k = &connection{under: conn}
		c.of[conn] = k
		k.fresh = c.fresh.PushBack(k)
		if c.fresh.Len() > c.config.Limits.Handshakes {
			full = c.fresh.Front().Value.(*connection)
			c.forget(full)
		}
	case k == nil: // closed by us before
	case state == http.StateActive && !c.config.Anybody:
		c.busy(k)
	case state == http.StateActive || state == http.StateIdle:
		c.rest(k)
	case state == http.StateClosed || state == http.StateHijacked:
		c.forget(k)
	}
	c.mu.Unlock()
	c.close(full, Handshake)
}

// establish counts a connection whose holder is known, or refuses it.
func (c *Limiter) establish(conn net.Conn, key string) error {
	c.mu.Lock()
	k := c.of[conn]
	if k == nil || k.holder != nil {
		c.mu.Unlock()
		return errTooMany // closed by us in the meantime
	}
	h := c.holders[key]
	if h == nil {
		h = &holder{key: key}
	}
	gone, why, ok := c.place(h)
	if gone != nil {
		c.forget(gone)
	}
	var err error
	if !ok {
		err = errTooMany
	} else {
		c.fresh.Remove(k.fresh)
		k.fresh, k.holder = nil, h
		c.holders[key] = h // again, if its only one made way
		h.n++
		c.verified++
		c.rest(k) // until its first request
	}
	c.mu.Unlock()
	if err != nil {
		c.config.Closed(why)
	}
	c.close(gone, why)
	return err
}

func oldest(l *list.List) *connection {
	if l.Len() == 0 {
		return nil
	}
	return l.Front().Value.(*connection)
}

func (c *Limiter) close(k *connection, why string) {
	if k != nil {
		c.config.Closed(why)
		_ = k.under.Close() // whoever serves it is told by that
	}
}

func (c *Limiter) busy(k *connection) {
	if k.idle != nil {
		c.idle.Remove(k.idle)
		k.holder.idle.Remove(k.own)
		k.idle, k.own = nil, nil
	}
}

func (c *Limiter) rest(k *connection) {
	c.busy(k)
	if k.holder != nil && k.held == 0 {
		k.idle, k.own = c.idle.PushBack(k), k.holder.idle.PushBack(k)
	}
}

func (c *Limiter) forget(k *connection) {
	delete(c.of, k.under)
	if k.fresh != nil {
		c.fresh.Remove(k.fresh)
		k.fresh = nil
	}
	if h := k.holder; h != nil {
		c.busy(k)
		c.verified--
		if h.n--; h.n == 0 {
			delete(c.holders, h.key)
		}
		k.holder = nil
	}
}
