package cryptoserver_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/token"
	"kluis/internal/devpki"
	"kluis/meter"
)

// methods calls every method with an empty message.
var methods = map[string]func(context.Context, cryptopb.CryptoserverClient) error{
	"Open": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.Open(ctx, &cryptopb.OpenRequest{})
		return err
	},
	"Mint": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.Mint(ctx, &cryptopb.MintRequest{})
		return err
	},
	"Seal": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.Seal(ctx, &cryptopb.SealRequest{})
		return err
	},
	"SealStep": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.SealStep(ctx, &cryptopb.SealStepRequest{})
		return err
	},
	"SealIdentity": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.SealIdentity(ctx, &cryptopb.SealIdentityRequest{})
		return err
	},
	"OpenIdentity": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.OpenIdentity(ctx, &cryptopb.OpenIdentityRequest{})
		return err
	},
	"FindIndex": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.FindIndex(ctx, &cryptopb.FindIndexRequest{})
		return err
	},
	"TakeSupplierStep": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.TakeSupplierStep(ctx, &cryptopb.TakeSupplierStepRequest{})
		return err
	},
	"TakeStep": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.TakeStep(ctx, &cryptopb.TakeStepRequest{})
		return err
	},
	"SignManifest": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.SignManifest(ctx, &cryptopb.SignManifestRequest{})
		return err
	},
	"SealSupplier": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.SealSupplier(ctx, &cryptopb.SealSupplierRequest{})
		return err
	},
	"SignToken": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.SignToken(ctx, &cryptopb.SignTokenRequest{})
		return err
	},
	"SignStaffToken": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.SignStaffToken(ctx, &cryptopb.SignStaffTokenRequest{})
		return err
	},
	"SignControl": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.SignControl(ctx, &cryptopb.SignControlRequest{})
		return err
	},
	"PutControl": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.PutControl(ctx, &cryptopb.PutControlRequest{})
		return err
	},
	"Rewrap": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.Rewrap(ctx, &cryptopb.RewrapRequest{})
		return err
	},
	"Reseal": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.Reseal(ctx, &cryptopb.ResealRequest{})
		return err
	},
	"ReadJournal": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.ReadJournal(ctx, &cryptopb.ReadJournalRequest{})
		return err
	},
	"SignCheckpoint": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.SignCheckpoint(ctx, &cryptopb.SignCheckpointRequest{})
		return err
	},
	"Status": func(ctx context.Context, c cryptopb.CryptoserverClient) error {
		_, err := c.Status(ctx, &cryptopb.StatusRequest{})
		return err
	},
}

// health tries the health service both ways.
func health(ctx context.Context, w *world, identity string) (check, watch error) {
	conn, err := grpc.NewClient(w.address, grpc.WithTransportCredentials(credentials.NewTLS(w.clientTLS(identity))))
	w.must(err)
	defer conn.Close()
	api := healthpb.NewHealthClient(conn)
	_, check = api.Check(ctx, &healthpb.HealthCheckRequest{})
	stream, err := api.Watch(ctx, &healthpb.HealthCheckRequest{})
	w.must(err)
	_, watch = stream.Recv()
	return check, watch
}

func reasonOf(err error) cryptopb.Reason {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return cryptopb.Reason(info.Reason)
		}
	}
	return ""
}

// TestIdentities tries every identity on every method.
func TestIdentities(t *testing.T) {
	t.Parallel()
	if len(methods) != len(cryptopb.Cryptoserver_ServiceDesc.Methods) {
		t.Fatal("a method is not tried")
	}
	w := newWorld(t)
	for _, identity := range []string{"gateway", "ingest", "issuer", "registrar", "custodian", "relay", "auditor", "stranger", "cryptoserver-1", ""} {
		api := w.raw(w.clientTLS(identity))
		some := false
		for method, call := range methods {
			want := slices.Contains(allow()[method], identity)
			some = some || want
			denied := reasonOf(call(t.Context(), api)) == cryptopb.ReasonIdentityNotAllowed
			if denied == want {
				t.Errorf("%q on %s: denied %v", identity, method, denied)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		check, watch := health(ctx, w, identity)
		cancel()
		for _, err := range []error{check, watch} {
			if some != (err == nil) || !some && status.Code(err) != codes.PermissionDenied {
				t.Errorf("%q on the health service: %v", identity, err)
			}
		}
	}
}

// TestStrangerIsNotHeardOut: whoever may not call a method is refused before
// the message is decoded; a few megabytes of empty parts would take gigabytes.
func TestStrangerIsNotHeardOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dial := func(identity string) *grpc.ClientConn {
		conn, err := grpc.NewClient(w.address, grpc.WithTransportCredentials(credentials.NewTLS(w.clientTLS(identity))))
		w.must(err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	call := func(conn *grpc.ClientConn, method string) error {
		return conn.Invoke(t.Context(), "/kluis.cryptoserver.v1.Cryptoserver/"+method, []byte("no message"), nil, grpc.ForceCodec(bytesCodec{}))
	}
	gateway, stranger := dial("gateway"), dial("stranger")
	if err := call(gateway, "Open"); status.Code(err) != codes.Internal { // the message does not decode
		t.Fatalf("the test sends what decodes: %v", err)
	}
	for _, method := range []string{"Open", "Seal", "Invented"} {
		if err := call(stranger, method); reasonOf(err) != cryptopb.ReasonIdentityNotAllowed {
			t.Errorf("%s: %v", method, err)
		}
	}
	if n := w.counter("kluis_cryptoserver_calls_total", "code", "PermissionDenied"); n != 3 {
		t.Errorf("%v refusals counted, want 3", n)
	}
	if n := w.counter("kluis_cryptoserver_calls_total", "method", "Invented"); n != 0 {
		t.Error("a client makes up labels of a metric")
	}
	if n := strings.Count(w.log.String(), `"client":"stranger"`); n != 3 {
		t.Errorf("%d refusals logged, want 3", n)
	}
}

// bytesCodec sends bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string                  { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (bytesCodec) Unmarshal([]byte, any) error   { return nil }

// TestTLS: without a certificate of the operator's CA there is no connection.
func TestTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	foreign, err := devpki.NewCA("suppliers")
	w.must(err)
	ours := w.clientTLS("gateway")
	bad := map[string]func() *tls.Config{
		"no certificate": func() *tls.Config { c := ours.Clone(); c.Certificates = nil; return c },
		"another CA": func() *tls.Config {
			c := ours.Clone()
			cert, err := foreign.Issue(devpki.Leaf{CommonName: "gateway"})
			w.must(err)
			c.Certificates = []tls.Certificate{cert}
			return c
		},
		"expired": func() *tls.Config {
			c := ours.Clone()
			cert, err := w.ca.Issue(devpki.Leaf{CommonName: "gateway", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
			w.must(err)
			c.Certificates = []tls.Certificate{cert}
			return c
		},
		"TLS 1.2": func() *tls.Config {
			c := ours.Clone()
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		},
		"a server of another CA": func() *tls.Config {
			c := ours.Clone()
			c.RootCAs = foreign.Pool()
			return c
		},
	}
	for name, conf := range bad {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := w.raw(conf()).Status(ctx, &cryptopb.StatusRequest{})
		cancel()
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.raw(ours).Status(t.Context(), &cryptopb.StatusRequest{}); err != nil {
		t.Errorf("the gateway: %v", err)
	}
}

// TestImpostor: another service of the operator, with a certificate good for
// the address, may not pose as a cryptoserver and be given readings to seal.
func TestImpostor(t *testing.T) {
	t.Parallel()
	for name, genuine := range map[string]bool{
		"cryptoserver": true, "cryptoserver-2": true, "gateway": false, "cryptoserverx": false, "": false,
	} {
		w := newWorld(t, func(w *world, c *cryptoserver.Config) { c.TLS, w.noFeed = w.serverTLS(name), true })
		if err := w.as("gateway").Status(t.Context())[0].Err; (err == nil) != genuine {
			t.Errorf("server %q: %v", name, err)
		}
	}
}

// TestRoles: a server answers for the roles whose tokens it holds.
func TestRoles(t *testing.T) {
	t.Parallel()
	needs := map[string]string{"Open": "open", "OpenIdentity": "open", "SealIdentity": "seal", "FindIndex": "seal", "Mint": "mint", "Seal": "seal", "SealStep": "seal", "TakeStep": "seal", "SignManifest": "seal", "SealSupplier": "seal", "TakeSupplierStep": "seal", "SignToken": "sign", "SignStaffToken": "sign", "SignControl": "seal", "Rewrap": "rotate"}
	everything := map[string][]string{}
	for m := range methods {
		everything[m] = []string{"tester"}
	}
	for _, held := range []string{"open", "seal", "mint", "rotate", "sign"} {
		w := newWorld(t, func(w *world, c *cryptoserver.Config) {
			c.Allow, w.noFeed = everything, true
			keep := c.Tokens
			c.Tokens = cryptoserver.Tokens{}
			switch held {
			case "open":
				c.Tokens.Open = keep.Open
			case "seal":
				c.Tokens.Seal = keep.Seal
			case "mint":
				c.Tokens.Mint = keep.Mint
			case "rotate":
				c.Tokens.Rotate = keep.Rotate
			case "sign":
				c.Tokens.Sign = keep.Sign
			}
		})
		api := w.raw(w.clientTLS("tester"))
		for method, role := range needs {
			notServed := reasonOf(methods[method](t.Context(), api)) == cryptopb.ReasonRoleNotServed
			if notServed != (role != held) {
				t.Errorf("server of role %s on %s: refused %v", held, method, notServed)
			}
		}
		if reasonOf(methods["Reseal"](t.Context(), api)) != cryptopb.ReasonRoleNotServed {
			t.Errorf("server of role %s reseals", held)
		}
		st := w.as("tester").Status(t.Context())
		if len(st) != 1 || st[0].Err != nil || !slices.Equal(st[0].Roles, []string{held}) || !st[0].Healthy ||
			len(st[0].Tokens) != 1 || st[0].Tokens[0].Role != held || st[0].Tokens[0].State != "up" {
			t.Errorf("status: %+v", st)
		}
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	w.opened(m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow)))
	st := w.as("gateway").Status(t.Context())
	if len(st) != 1 || st[0].Err != nil {
		t.Fatalf("%+v", st)
	}
	s := st[0]
	if s.ServerID != "cs1" || s.Version != "test" || !slices.Equal(s.Roles, []string{"mint", "open", "rotate", "seal", "sign"}) ||
		s.ProfileDigest != w.profile.Digest() || !slices.Equal(s.KEKEpochs, []uint32{1}) || !s.Healthy ||
		s.ControlSequence != 1 || s.ActiveEpoch != 1 || !s.ControlAt.Equal(baseTime) || len(s.Tokens) != 5 || s.Receipts != 1 || s.BootID == [16]byte{} || !s.StartedAt.Equal(baseTime) || s.Address != w.address {
		t.Errorf("%+v", s)
	}
}

// setBlocks gives the first metering point n blocks that do not open.
func setBlocks(r *cryptopb.OpenRequest, n int) *cryptopb.SealedBlocks {
	r.Units[0].Blocks = uint32(n)
	r.Blocks = &cryptopb.SealedBlocks{
		Field: slices.Repeat([]uint32{1}, n), Day: slices.Repeat([]int32{r.Units[0].FromDay}, n),
		Resolution: slices.Repeat([]uint32{uint32(meter.P1D)}, n), Version: slices.Repeat([]uint32{1}, n),
		Key: make([]uint32, n), Size: slices.Repeat([]uint32{40}, n), Ciphertexts: make([]byte, 40*n),
	}
	return r.Blocks
}

// TestLimits: what is malformed or too much is refused before any work.
func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	api := w.raw(w.clientTLS("gateway"))
	digest := w.profile.Digest()
	good := func() *cryptopb.OpenRequest {
		return &cryptopb.OpenRequest{
			AccessToken: w.token(m.new), SupplierRecord: m.new.record, ProfileDigest: digest[:],
			Units: []*cryptopb.OpenUnit{{
				LegalFile: m.file, InteractionId: make([]byte, 16), Purpose: uint32(meter.EnergyManagement),
				FromDay: int32(day("2024-04-01")), ToDay: int32(day("2024-05-01")), Fields: []uint32{1},
			}},
		}
	}
	if _, err := api.Open(t.Context(), good()); err != nil {
		t.Fatal(err)
	}
	with := good()
	setBlocks(with, 2)
	got, err := api.Open(t.Context(), with)
	if err != nil || len(got.Units[0].Faults) != 2 || got.Units[0].Faults[0].Fault != cryptopb.Fault_FAULT_DAMAGED || got.Units[0].Faults[1].Fault != cryptopb.Fault_FAULT_DUPLICATE {
		t.Fatal(err, got)
	}
	for name, change := range map[string]func(*cryptopb.OpenRequest){
		"no unit": func(r *cryptopb.OpenRequest) { r.Units = nil },
		"too many units": func(r *cryptopb.OpenRequest) {
			r.Units[0].ToDay = r.Units[0].FromDay + 1
			r.Units = slices.Repeat(r.Units, 1001)
		},
		"too many blocks": func(r *cryptopb.OpenRequest) { setBlocks(r, 20001) },
		"more blocks than said": func(r *cryptopb.OpenRequest) {
			setBlocks(r, 2)
			r.Units[0].Blocks = 1
		},
		"fewer blocks than said": func(r *cryptopb.OpenRequest) {
			setBlocks(r, 2)
			r.Units[0].Blocks = 3
		},
		"blocks said that are not there": func(r *cryptopb.OpenRequest) { r.Units[0].Blocks = 1 },
		"as many blocks as overflow": func(r *cryptopb.OpenRequest) {
			setBlocks(r, 2)
			r.Units[0].ToDay = r.Units[0].FromDay + 1
			r.Units = slices.Repeat(r.Units, 3)
			for _, u := range r.Units {
				*u = cryptopb.OpenUnit{LegalFile: u.LegalFile, InteractionId: u.InteractionId, Purpose: u.Purpose, FromDay: u.FromDay, ToDay: u.ToDay, Fields: u.Fields, Blocks: 1<<32 - 1}
			}
		},
		"no days":        func(r *cryptopb.OpenRequest) { setBlocks(r, 2).Day = nil },
		"a day short":    func(r *cryptopb.OpenRequest) { b := setBlocks(r, 2); b.Day = b.Day[:1] },
		"a day more":     func(r *cryptopb.OpenRequest) { b := setBlocks(r, 2); b.Day = append(b.Day, 1) },
		"no resolutions": func(r *cryptopb.OpenRequest) { setBlocks(r, 2).Resolution = nil },
		"no versions":    func(r *cryptopb.OpenRequest) { setBlocks(r, 2).Version = nil },
		"no keys":        func(r *cryptopb.OpenRequest) { setBlocks(r, 2).Key = nil },
		"no sizes":       func(r *cryptopb.OpenRequest) { setBlocks(r, 2).Size = nil },
		"no fields":      func(r *cryptopb.OpenRequest) { setBlocks(r, 2).Field = nil },
		"a field that wraps": func(r *cryptopb.OpenRequest) {
			setBlocks(r, 2).Field[1] += 1 << 16
		},
		"ciphertexts too short": func(r *cryptopb.OpenRequest) { b := setBlocks(r, 2); b.Ciphertexts = b.Ciphertexts[:79] },
		"ciphertexts too long":  func(r *cryptopb.OpenRequest) { b := setBlocks(r, 2); b.Ciphertexts = append(b.Ciphertexts, 0) },
		"sizes that overflow": func(r *cryptopb.OpenRequest) {
			b := setBlocks(r, 2)
			b.Size[0], b.Size[1] = 1<<32-40, 120
		},
		"too many days": func(r *cryptopb.OpenRequest) {
			r.Units[0].Fields = []uint32{1, 2, 3, 4, 6, 7}
			r.Units[0].ToDay = r.Units[0].FromDay + 366
			r.Units = slices.Repeat(r.Units, 10)
		},
		"too many keys": func(r *cryptopb.OpenRequest) { r.Units[0].Keys = slices.Repeat([]*cryptopb.DataKey{{}}, 4001) },
		"too many keys of all units": func(r *cryptopb.OpenRequest) {
			r.Units[0].ToDay = r.Units[0].FromDay + 1
			r.Units[0].Keys = slices.Repeat([]*cryptopb.DataKey{{}}, 3300)
			r.Units = slices.Repeat(r.Units, 5)
		},
		"no interaction":     func(r *cryptopb.OpenRequest) { r.Units[0].InteractionId = nil },
		"no purpose":         func(r *cryptopb.OpenRequest) { r.Units[0].Purpose = 0 },
		"unknown purpose":    func(r *cryptopb.OpenRequest) { r.Units[0].Purpose = 6 },
		"purpose wraps":      func(r *cryptopb.OpenRequest) { r.Units[0].Purpose = 256 + 2 },
		"unknown resolution": func(r *cryptopb.OpenRequest) { r.Units[0].Resolution = 5 },
		"resolution wraps":   func(r *cryptopb.OpenRequest) { r.Units[0].Resolution = 256 + 1 },
		"unknown kind":       func(r *cryptopb.OpenRequest) { r.Units[0].Kind = 3 },
		"reversed":           func(r *cryptopb.OpenRequest) { r.Units[0].ToDay = r.Units[0].FromDay - 1 },
		"empty":              func(r *cryptopb.OpenRequest) { r.Units[0].ToDay = r.Units[0].FromDay },
		"a hundred years":    func(r *cryptopb.OpenRequest) { r.Units[0].ToDay += 36500 },
		"overflowing": func(r *cryptopb.OpenRequest) {
			r.Units[0].FromDay, r.Units[0].ToDay = -1<<31, 1<<31-1
		},
		"no field":       func(r *cryptopb.OpenRequest) { r.Units[0].Fields = nil },
		"unknown field":  func(r *cryptopb.OpenRequest) { r.Units[0].Fields = []uint32{99} },
		"field wraps":    func(r *cryptopb.OpenRequest) { r.Units[0].Fields = []uint32{1<<16 + 1} },
		"repeated field": func(r *cryptopb.OpenRequest) { r.Units[0].Fields = []uint32{1, 1} },
	} {
		r := good()
		change(r)
		if _, err := api.Open(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := good()
	r.Units[0].LegalFile = make([]byte, 17<<20)
	if _, err := api.Open(t.Context(), r, grpc.MaxCallSendMsgSize(32<<20)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message of 17 MB: %v", err)
	}
}

// TestDeadline: the server ends a call whose deadline is later than its own
// limit (the client's is 10 s).
func TestDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) { c.MaxCall = 3 * time.Second })
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow))
	w.open.wait.Store(true)
	start := time.Now()
	_, err := w.as("gateway").Open(t.Context(), q)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 8*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
}

// TestHealth: a server whose token is down says so at once, and is back when
// the token is; other roles are not concerned.
func TestHealth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow))
	w.opened(q)

	down := fmt.Errorf("%w: injected", token.ErrUnavailable)
	w.open.check.Store(&down)
	w.open.fail.Store(&down)
	eventually(t, "the call fails as unavailable", func() bool {
		_, err := w.as("gateway").Open(t.Context(), q)
		return errors.Is(err, client.ErrUnavailable)
	})
	eventually(t, "the gauge falls", func() bool { return w.counter("kluis_cryptoserver_token_up", "role", "open") == 0 })
	if st := w.as("gateway").Status(t.Context()); st[0].Err != nil || st[0].Healthy {
		t.Errorf("status while down: %+v", st[0])
	}
	if w.counter("kluis_cryptoserver_token_up", "role", "sign") != 1 {
		t.Error("another role went down too")
	}
	w.token(m.new) // role sign goes on

	w.open.fail.Store(nil)
	w.open.check.Store(nil)
	eventually(t, "the call succeeds again", func() bool {
		_, err := w.as("gateway").Open(t.Context(), q)
		return err == nil
	})
}

// TestBusyIsNotDown: too many calls at once are turned away, and the token
// stays up: or load would spread from one server to the next as an outage.
func TestBusyIsNotDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) { c.CheckEvery = time.Hour })
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow))
	busy := fmt.Errorf("token x: %w", token.ErrBusy)
	w.open.fail.Store(&busy)
	if _, err := w.as("gateway").Open(t.Context(), q); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("busy: %v", err)
	}
	if w.counter("kluis_cryptoserver_token_up", "role", "open") != 1 {
		t.Error("a busy token counts as down")
	}
	w.open.fail.Store(nil)
	w.opened(q)
}

// TestCallFindsTokenDown: a call that finds its token gone does not wait for
// the next check to say so.
func TestCallFindsTokenDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) { c.CheckEvery = time.Hour })
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow))
	down := fmt.Errorf("%w: injected", token.ErrUnavailable)
	w.open.fail.Store(&down)
	if _, err := w.as("gateway").Open(t.Context(), q); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if up := w.counter("kluis_cryptoserver_token_up", "role", "open"); up != 0 {
		t.Error("the token counts as up")
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in 10 s: %s", what)
}
