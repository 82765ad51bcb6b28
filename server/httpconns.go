package server

import (
	"container/list"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
)

// ConnectionLimits bound the connections of the API.
type ConnectionLimits struct {
	All            int // at once
	PerCertificate int // of these
	Handshakes     int // under way, besides
}

func (l ConnectionLimits) check() error {
	if l.All < 1 || l.PerCertificate < 1 || l.PerCertificate > l.All || l.Handshakes < 1 {
		return errors.New("server: limits: there are connections, a certificate has some of them and not more than all, and handshakes")
	}
	return nil
}

// Why connections were closed, as the metrics name it.
const (
	closedIdle        = "idle"
	closedHandshake   = "handshake"
	closedRefused     = "refused"
	closedCertificate = "certificate"
)

// connections keeps their number within limits. A connection costs some tens of
// kilobytes, whatever it does: who comes when there are too many takes the place
// of the one that has been idle for longest, and only when none is, is refused.
type connections struct {
	limits ConnectionLimits
	closed func(why string)

	mu       sync.Mutex
	of       map[net.Conn]*connection // by what lies under TLS
	fresh    list.List                // of *connection: in their handshakes, oldest first
	idle     list.List                // of *connection: established, without a request, idle for longest first
	holders  map[[32]byte]*holder
	verified int // established
}

type connection struct {
	under  net.Conn
	fresh  *list.Element // in the handshakes
	holder *holder       // nil: in its handshake
	idle   *list.Element // in the list of all
	own    *list.Element // in the holder's
}

// holder is a client certificate that has connections.
type holder struct {
	leaf [32]byte
	n    int
	idle list.List // of *connection
}

var errConnections = errors.New("too many connections")

func newConnections(l ConnectionLimits, closed func(why string)) *connections {
	return &connections{limits: l, closed: closed, of: map[net.Conn]*connection{}, holders: map[[32]byte]*holder{}}
}

// bound makes a server keep to the limits. Its TLS configuration must be there.
func (c *connections) bound(h *http.Server) {
	h.ConnState = func(conn net.Conn, state http.ConnState) { c.state(under(conn), state) }
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
			if len(s.PeerCertificates) == 0 {
				return errors.New("no client certificate")
			}
			return c.establish(conn, sha256.Sum256(s.PeerCertificates[0].Raw))
		}
		return own, nil
	}
}

func under(conn net.Conn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return conn
}

// state follows a connection as the server tells.
func (c *connections) state(conn net.Conn, state http.ConnState) {
	var full *connection
	c.mu.Lock()
	k := c.of[conn]
	switch {
	case state == http.StateNew:
		k = &connection{under: conn}
		c.of[conn] = k
		k.fresh = c.fresh.PushBack(k)
		if c.fresh.Len() > c.limits.Handshakes {
			full = c.fresh.Front().Value.(*connection)
			c.forget(full)
		}
	case k == nil: // closed by us before
	case state == http.StateActive:
		c.busy(k)
	case state == http.StateIdle:
		c.rest(k)
	case state == http.StateClosed || state == http.StateHijacked:
		c.forget(k)
	}
	c.mu.Unlock()
	c.close(full, closedHandshake)
}

// establish counts a connection whose client has shown its certificate, or
// refuses it.
func (c *connections) establish(conn net.Conn, leaf [32]byte) error {
	c.mu.Lock()
	k := c.of[conn]
	if k == nil || k.holder != nil {
		c.mu.Unlock()
		return errConnections // closed by us in the meantime
	}
	h := c.holders[leaf]
	if h == nil {
		h = &holder{leaf: leaf}
	}
	var gone *connection
	why := ""
	switch {
	case h.n >= c.limits.PerCertificate:
		why, gone = closedCertificate, oldest(&h.idle)
	case c.verified >= c.limits.All:
		if why, gone = closedIdle, oldest(&c.idle); gone == nil {
			why = closedRefused
		}
	}
	if gone != nil {
		c.forget(gone)
	}
	var err error
	if why != "" && gone == nil {
		err = errConnections
	} else {
		c.fresh.Remove(k.fresh)
		k.fresh, k.holder = nil, h
		c.holders[leaf] = h // again, if its only one made way
		h.n++
		c.verified++
		c.rest(k) // until its first request
	}
	c.mu.Unlock()
	if err != nil {
		c.closed(why)
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

func (c *connections) close(k *connection, why string) {
	if k != nil {
		c.closed(why)
		_ = k.under.Close() // whoever serves it is told by that
	}
}

func (c *connections) busy(k *connection) {
	if k.idle != nil {
		c.idle.Remove(k.idle)
		k.holder.idle.Remove(k.own)
		k.idle, k.own = nil, nil
	}
}

func (c *connections) rest(k *connection) {
	c.busy(k)
	if k.holder != nil {
		k.idle, k.own = c.idle.PushBack(k), k.holder.idle.PushBack(k)
	}
}

func (c *connections) forget(k *connection) {
	delete(c.of, k.under)
	if k.fresh != nil {
		c.fresh.Remove(k.fresh)
		k.fresh = nil
	}
	if h := k.holder; h != nil {
		c.busy(k)
		c.verified--
		if h.n--; h.n == 0 {
			delete(c.holders, h.leaf)
		}
		k.holder = nil
	}
}
