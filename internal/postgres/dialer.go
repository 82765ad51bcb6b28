package postgres

import (
	"context"
	"net"
	"sync/atomic"
	"time"
)

// dialer makes connections that give up on a server that is silent: neither a
// lost network nor a frozen server sends anything that would end a read, and
// the driver cannot cancel over the same network either.
type dialer struct {
	net.Dialer
	silence time.Duration
}

// Dial and DialTimeout are what pq.Dialer asks for; the driver uses
// DialContext.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := d.Dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, silence: d.silence}, nil
}

// conn bounds each read and write.
type conn struct {
	net.Conn
	silence time.Duration
	// The driver sets a deadline of its own while it connects.
	driven atomic.Bool
}

func (c *conn) SetDeadline(t time.Time) error {
	c.driven.Store(!t.IsZero())
	return c.Conn.SetDeadline(t)
}

func (c *conn) Read(p []byte) (int, error) {
	if !c.driven.Load() {
		if err := c.Conn.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	if !c.driven.Load() {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.silence)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}
