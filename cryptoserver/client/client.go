// Package client reaches a pool of cryptoservers.
//
// A call goes to that server, of those that say they serve the role it needs
// (gRPC health), which has the fewest of our calls in progress: a slow server
// gets less. A call that finds its server gone, or its queue full, is repeated
// on another, after a short jittered pause, at most four times, within the
// caller's deadline and a budget of the whole client; all calls may be repeated
// without harm. A server that falls silent while another answers counts as gone
// after two or three seconds. This is the one layer that retries: callers must
// not.
//
// The errors are of a few kinds for errors.Is: ErrUnavailable (try later),
// ErrRefused with its finer kinds (trying again will not help), the context's
// own, and ErrInternal.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	_ "google.golang.org/grpc/health" // lets the connections watch the servers' health
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/stats"

	"kluis/cryptoserver/cryptopb"
)

// ServerIdentity is the subject common name that a cryptoserver's certificate
// has, alone or followed by "-" and anything ("cryptoserver-1"): the operator
// CA certifies other services too, and none of them may pose as one.
const ServerIdentity = "cryptoserver"

// Config says how the pool is reached.
type Config struct {
	Addresses []string    // host:port of every server, at least one
	TLS       *tls.Config // the client's certificate and the operator CA; TLS 1.3
	Timeout   time.Duration
	// Timeout ends a call whose context has no earlier deadline; 10 s when zero.
	Registerer prometheus.Registerer // of the pool's metrics, once per process; nil: none
	Traces     stats.Handler         // is told of each call; nil: nobody is
}

const maxMessage = 16 << 20

// serviceConfig is per role: the health of "open" says nothing of "seal". The
// throttle stops retries when half of its thousand tokens are gone, so that
// they cannot multiply the load on a pool that is failing as a whole.
const serviceConfig = `{
	"loadBalancingConfig": [{"` + leastLoaded + `": {}}],
	"healthCheckConfig": {"serviceName": %q},
	"methodConfig": [{
		"name": [{"service": %q}],
		"retryPolicy": {
			"maxAttempts": 5, "initialBackoff": "0.02s", "maxBackoff": "0.5s", "backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
		}
	}],
	"retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.5}
}`

// Client is a pool of cryptoservers. Safe for concurrent use.
type Client struct {
	timeout time.Duration
	conns   []*grpc.ClientConn
	open    cryptopb.CryptoserverClient
	seal    cryptopb.CryptoserverClient
	mint    cryptopb.CryptoserverClient
	rotate  cryptopb.CryptoserverClient
	sign    cryptopb.CryptoserverClient
	sealKey cryptopb.CryptoserverClient // what needs role seal but no control feed
	servers []server
	turn    atomic.Uint32 // of the servers, where they are asked one by one

	firstCall sync.Once // starts watching
	watching  sync.WaitGroup
	heard     atomic.Pointer[time.Time] // when any server answered a heartbeat last
	closed    context.Context
	stop      context.CancelFunc
}

// server is one server by itself.
type server struct {
	address string
	conn    *grpc.ClientConn // goes to no other, and repeats nothing
	api     cryptopb.CryptoserverClient
	lines   *lines // on which the pool's calls reach it
}

// New connects to nothing yet: connections are made when first used, and made
// again when lost.
func New(c Config) (*Client, error) {
	if len(c.Addresses) == 0 {
		return nil, errors.New("cryptoserver client: no addresses")
	}
	if c.TLS == nil || c.TLS.RootCAs == nil || c.TLS.InsecureSkipVerify || c.TLS.MinVersion < tls.VersionTLS13 ||
		(len(c.TLS.Certificates) == 0 && c.TLS.GetClientCertificate == nil) {
		return nil, errors.New("cryptoserver client: TLS must be 1.3 with a client certificate and a named authority")
	}
	conf := c.TLS.Clone()
	conf.VerifyConnection = verifyServer
	common := []grpc.DialOption{
		grpc.WithTransportCredentials(cryptopb.NewTLS(conf)),
		grpc.WithWriteBufferSize(cryptopb.WriteBuffer),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage),
			// A call larger than this buffer would not be retried.
			grpc.MaxRetryRPCBufferSize(maxMessage),
		),
		grpc.WithDisableServiceConfig(), // of the resolver; the default one below counts
		grpc.WithNoProxy(),
		grpc.WithStaticStreamWindowSize(1 << 20), // as the server's
		grpc.WithStaticConnWindowSize(4 << 20),
	}
	report, err := measured(c.Registerer)
	if err != nil {
		return nil, fmt.Errorf("cryptoserver client: metrics: %w", err)
	}
	common = append(common, report...)
	if c.Traces != nil {
		common = append(common, grpc.WithStatsHandler(c.Traces))
	}
	cl := &Client{timeout: c.Timeout}
	cl.closed, cl.stop = context.WithCancel(context.Background())
	if cl.timeout == 0 {
		cl.timeout = 10 * time.Second
	}
	addrs := make([]resolver.Address, len(c.Addresses))
	for i, a := range c.Addresses {
		host, _, err := net.SplitHostPort(a)
		if err != nil || host == "" {
			return nil, fmt.Errorf("cryptoserver client: %q is not host:port", a)
		}
		addrs[i] = resolver.Address{Addr: a, ServerName: host}
	}
	dial := func(addrs []resolver.Address, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
		r := manual.NewBuilderWithScheme("cryptoservers")
		r.InitialState(resolver.State{Addresses: addrs})
		conn, err := grpc.NewClient("cryptoservers:///pool", append(append([]grpc.DialOption{grpc.WithResolvers(r)}, common...), opts...)...)
		if err != nil {
			return nil, err
		}
		cl.conns = append(cl.conns, conn)
		return conn, nil
	}
	for i, a := range addrs {
		conn, err := dial(addrs[i:i+1], grpc.WithDisableRetry())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cryptoserver client: %w", err), cl.Close())
		}
		cl.servers = append(cl.servers, server{a.Addr, conn, cryptopb.NewCryptoserverClient(conn), &lines{}})
	}
	for role, api := range map[string]*cryptopb.CryptoserverClient{
		"open": &cl.open, "seal": &cl.seal, "mint": &cl.mint, "rotate": &cl.rotate, "sign": &cl.sign, "sealkey": &cl.sealKey,
	} {
		sc := fmt.Sprintf(serviceConfig, role, cryptopb.Cryptoserver_ServiceDesc.ServiceName)
		conn, err := dial(addrs, grpc.WithDefaultServiceConfig(sc),
			grpc.WithChainUnaryInterceptor(cl.intercept), grpc.WithContextDialer(cl.dialer(role)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cryptoserver client: %w", err), cl.Close())
		}
		*api = cryptopb.NewCryptoserverClient(conn)
	}
	return cl, nil
}

// verifyServer runs after the certificate has been verified for its host.
func verifyServer(cs tls.ConnectionState) error {
	if len(cs.VerifiedChains) == 0 {
		return errors.New("no verified certificate")
	}
	return verifyIdentity(cs.VerifiedChains[0][0])
}

func verifyIdentity(leaf *x509.Certificate) error {
	name := leaf.Subject.CommonName
	if name == ServerIdentity || strings.HasPrefix(name, ServerIdentity+"-") {
		return nil
	}
	return fmt.Errorf("the server's certificate is that of %q, not of a %s", name, ServerIdentity)
}

// Close ends all connections; calls in progress fail.
func (c *Client) Close() error {
	c.firstCall.Do(func() {}) // from now on it starts nothing
	c.stop()
	c.watching.Wait()
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// bound gives a call its deadline.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.timeout)
}

// ServerStatus is what one server says of itself, or why it could not be
// reached.
type ServerStatus struct {
	Address       string
	Err           error // then the rest is empty
	ServerID      string
	BootID        [16]byte
	Roles         []string
	ProfileDigest [32]byte
	KEKEpochs     []uint32
	Healthy       bool // all its tokens pass their checks
	Version       string
	StartedAt     time.Time // UTC
	Receipts      uint64    // issued since it started

	ControlSequence uint64    // of the last control entry it knows
	ControlAt       time.Time // of the newest head it knows, UTC; zero: none
	ActiveEpoch     uint32    // 0: none
	Tokens          []TokenStatus
}

// Status asks every server by itself, all at once, in the order of the
// addresses.
func (c *Client) Status(ctx context.Context) []ServerStatus {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	out := make([]ServerStatus, len(c.servers))
	var wg sync.WaitGroup
	for i, s := range c.servers {
		wg.Go(func() {
			out[i] = s.status(ctx)
		})
	}
	wg.Wait()
	return out
}

func (s server) status(ctx context.Context) ServerStatus {
	st := ServerStatus{Address: s.address}
	resp, err := s.api.Status(ctx, &cryptopb.StatusRequest{})
	if err != nil {
		st.Err = fromGRPC(err)
		return st
	}
	if len(resp.BootId) != len(st.BootID) || len(resp.ProfileDigest) != len(st.ProfileDigest) {
		st.Err = internal("the server's status cannot be read")
		return st
	}
	copy(st.BootID[:], resp.BootId)
	copy(st.ProfileDigest[:], resp.ProfileDigest)
	st.ServerID, st.Roles, st.KEKEpochs, st.Healthy = resp.ServerId, resp.Roles, resp.KekEpochs, resp.Healthy
	st.Version, st.StartedAt, st.Receipts = resp.Version, time.UnixMicro(resp.StartedAt).UTC(), resp.Receipts
	st.ControlSequence, st.ActiveEpoch, st.Tokens = resp.ControlSequence, resp.ActiveEpoch, tokensFromWire(resp.Tokens)
	if resp.ControlAt != 0 {
		st.ControlAt = time.UnixMicro(resp.ControlAt).UTC()
	}
	return st
}
