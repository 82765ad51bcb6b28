package cryptopb

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
)

// WriteBuffer is what gRPC collects before it writes: a usual call whole.
const WriteBuffer = 64 << 10

// NewTLS is gRPC's credentials.NewTLS on connections that hand the records of
// one write to the kernel together, and take in what is there at once. TLS has
// 16 KB in a record and writes each by itself: the other side would be woken,
// find part of a message and sleep again, three or four times in a call.
func NewTLS(c *tls.Config) credentials.TransportCredentials {
	return transport{credentials.NewTLS(c)}
}

type transport struct {
	credentials.TransportCredentials
}

func (t transport) Clone() credentials.TransportCredentials {
	return transport{t.TransportCredentials.Clone()}
}

func (t transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	below := &wire{Conn: raw}
	c, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, below)
	if err != nil {
		return nil, nil, err
	}
	return &whole{Conn: c, below: below}, info, nil
}

func (t transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	below := &wire{Conn: raw}
	c, info, err := t.TransportCredentials.ServerHandshake(below)
	if err != nil {
		return nil, nil, err
	}
	return &whole{Conn: c, below: below}, info, nil
}

// whole is the TLS connection.
type whole struct {
	net.Conn
	below   *wire
	writing atomic.Int32
}

// Write returns when all records are with the kernel.
func (c *whole) Write(p []byte) (int, error) {
	c.writing.Add(1)
	defer c.writing.Add(-1)
	c.below.hold()
	n, err := c.Conn.Write(p)
	if e := c.below.flush(); err == nil && e != nil {
		n, err = 0, e
	}
	return n, err
}

// Close does not wait for a write that is stuck: as with TLS alone, the
// connection below is closed then without a word.
func (c *whole) Close() error {
	if c.writing.Load() > 0 {
		return c.below.Conn.Close()
	}
	return c.Conn.Close()
}

// wire is the connection below, of which everything is encrypted.
type wire struct {
	net.Conn

	mu   sync.Mutex
	held int // writes of whole in progress
	out  []byte

	in        []byte // of TLS's one reader
	from, end int
}

const readBuffer = 64 << 10

// Read takes in as much as there is.
func (w *wire) Read(p []byte) (int, error) {
	if w.from == w.end {
		if len(p) >= readBuffer {
			return w.Conn.Read(p)
		}
		if w.in == nil {
			w.in = make([]byte, readBuffer)
		}
		n, err := w.Conn.Read(w.in)
		w.from, w.end = 0, n
		if n == 0 {
			return 0, err
		}
		// An error comes again with the next read.
	}
	n := copy(p, w.in[w.from:w.end])
	w.from += n
	return n, nil
}

func (w *wire) hold() {
	w.mu.Lock()
	w.held++
	w.mu.Unlock()
}

// Write keeps what is written while a write of whole is in progress. What TLS
// writes of itself meanwhile keeps its place.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == 0 {
		return w.Conn.Write(p)
	}
	w.out = append(w.out, p...)
	return len(p), nil
}

func (w *wire) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held--
	if len(w.out) == 0 {
		return nil
	}
	_, err := w.Conn.Write(w.out)
	if w.out = w.out[:0]; cap(w.out) > 2*WriteBuffer {
		w.out = nil
	}
	return err
}
