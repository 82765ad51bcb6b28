package client

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// A process that is stopped, or a machine that is frozen, keeps its connections
// and answers nothing. gRPC's keepalive notices after 13 s (it asks no more
// often than every 10 s); the heartbeat after some 2.
const (
	heartbeat = time.Second     // between two questions
	silence   = 2 * time.Second // without an answer
)

// watch asks every server by itself, each on a connection of its own, until the
// client is closed. The question concerns no token, so that a server whose HSM
// is slow or hangs answers it. When a server is silent while another answers,
// its connections are cut: the calls on them fail as if it had been killed, and
// are repeated elsewhere under the rules and the budget for that. While no other
// answers it may be we who are slow, or all of them, and nothing is cut: no call
// is repeated because a pool is slow as a whole.
func (c *Client) watch() {
	if len(c.servers) < 2 {
		return
	}
	for i := range c.servers {
		s := &c.servers[i]
		c.watching.Go(func() {
			tick := time.NewTicker(heartbeat)
			defer tick.Stop()
			for {
				asked := time.Now()
				err := s.ask(c.closed)
				last := c.heard.Load()
				switch {
				case err == nil:
					c.heard.Store(new(time.Now()))
				case status.Code(err) == codes.DeadlineExceeded && last != nil && last.After(asked):
					s.lines.cut()
				}
				select {
				case <-c.closed.Done():
					return
				case <-tick.C:
				}
			}
		})
	}
}

// ask returns nil when the server answers. To have no connection is another
// error than to have no answer: it is being made, or the server is gone.
func (s *server) ask(ctx context.Context) error {
	if s.conn.GetState() != connectivity.Ready {
		s.conn.Connect()
		return errors.New("no connection")
	}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	// The first message of Watch tells what Check would, and the server does not
	// log it as a call.
	stream, err := healthpb.NewHealthClient(s.conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// lines are the connections to a server that carry the pool's calls.
type lines struct {
	mu   sync.Mutex
	last map[string]net.Conn // by role
}

// dialer makes connections for a role, and remembers the last to each server.
// The one before is closed by then, or is given no more calls.
func (c *Client) dialer(role string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		for _, s := range c.servers {
			if s.address == address {
				s.lines.mu.Lock()
				if s.lines.last == nil {
					s.lines.last = map[string]net.Conn{}
				}
				s.lines.last[role] = conn
				s.lines.mu.Unlock()
			}
		}
		return conn, nil
	}
}

func (l *lines) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for role, conn := range l.last {
		_ = conn.Close() // gRPC, whose it is, finds it closed
		delete(l.last, role)
	}
}
