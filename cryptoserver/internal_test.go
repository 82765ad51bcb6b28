package cryptoserver

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/token"
	"kluis/internal/testing/journaltest"
	"kluis/meter"
)

func TestAllowListDeniesByDefault(t *testing.T) {
	t.Parallel()
	const service = "/kluis.cryptoserver.v1.Cryptoserver/"
	const health = "/grpc.health.v1.Health/"
	a, err := newAllowList(map[string][]string{"Open": {"gateway"}, "Seal": {}, "Mint": nil})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, identity string
		want             bool
	}{
		{service + "Open", "gateway", true},
		{service + "Open", "Gateway", false},
		{service + "Open", "ingest", false},
		{service + "Open", "", false},
		{service + "Seal", "gateway", false},
		{service + "Mint", "gateway", false},
		{service + "SignToken", "gateway", false},
		{service + "Invented", "gateway", false},
		{health + "Watch", "gateway", true},
		{health + "Check", "gateway", true},
		{health + "Watch", "ingest", false},
		{health + "Watch", "", false},
		{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "gateway", false},
	} {
		if got := a.allows(c.method, c.identity); got != c.want {
			t.Errorf("%q may call %s: %v", c.identity, c.method, got)
		}
	}
	empty, err := newAllowList(nil)
	if err != nil || empty.allows(service+"Open", "gateway") || empty.allows(service+"Open", "") {
		t.Errorf("no lists: something is allowed (%v)", err)
	}
	for name, bad := range map[string]map[string][]string{
		"unknown method": {"open": {"gateway"}},
		"empty identity": {"Open": {""}},
		"long identity":  {"Open": {strings.Repeat("a", 65)}},
	} {
		if _, err := newAllowList(bad); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
}

func TestReceiptsAreOneChain(t *testing.T) {
	t.Parallel()
	ean, err := meter.ParseEAN("871685900000000004")
	if err != nil {
		t.Fatal(err)
	}
	gln, err := meter.ParseGLN("8712345000004")
	if err != nil {
		t.Fatal(err)
	}
	j := journaltest.New(t)
	chain := &recorder{serverID: "cs1", journal: j, failed: func(err error) { t.Error(err) }}
	const n = 200
	got := make([]envelope.Receipt, n)
	raw := make([][]byte, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			out, err := chain.opened([]envelope.Receipt{{
				At: time.Unix(1718445600, 0), Supplier: gln, EAN: ean, Purpose: meter.Billing, FileVersion: 1,
			}})
			if err != nil {
				t.Error(err)
				return
			}
			b := out[0]
			r, err := envelope.ParseReceipt(b)
			if err != nil {
				t.Error(err)
				return
			}
			got[r.Sequence-1], raw[r.Sequence-1] = r, b
		})
	}
	wg.Wait()
	var previous [32]byte
	for i, r := range got {
		if r.Sequence != uint64(i+1) || r.Previous != previous || r.ServerID != "cs1" || r.BootID != j.BootID() {
			t.Fatalf("receipt %d breaks the chain: %+v", i+1, r)
		}
		previous = sha256.Sum256(raw[i])
	}
	if chain.receipts.Load() != n {
		t.Errorf("%d issued", chain.receipts.Load())
	}
	if entries, err := j.Read(j.BootID(), 0, 1<<20); err != nil || !slices.EqualFunc(entries, raw, bytes.Equal) {
		t.Errorf("the journal has %d of them, or others (%v)", len(entries), err)
	}
}

func TestDamagedRuns(t *testing.T) {
	t.Parallel()
	got := runs([]fieldDay{{2, 10}, {1, 12}, {1, 10}, {1, 11}, {2, 12}}, meter.Damaged)
	want := []authz.Withheld{
		{Field: 1, Days: meter.DayRange{From: 10, To: 13}, Reason: meter.Damaged},
		{Field: 2, Days: meter.DayRange{From: 10, To: 11}, Reason: meter.Damaged},
		{Field: 2, Days: meter.DayRange{From: 12, To: 13}, Reason: meter.Damaged},
	}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: got %v, want %v", i, got[i], want[i])
		}
	}
}

// TestOpenedUnder: what the receipt says of a block is what left of it.
func TestOpenedUnder(t *testing.T) {
	t.Parallel()
	item := func(f meter.FieldCode, asked, granted meter.Resolution, b meter.Basis, from, to meter.Day) authz.GrantItem {
		return authz.GrantItem{Basis: b, Spec: meter.SeriesSpec{
			Field: meter.Field{Code: f}, Resolution: asked, Granularity: granted, Days: meter.NewDaySet(meter.DayRange{From: from, To: to}),
		}}
	}
	items := []authz.GrantItem{
		item(1, 0, meter.P1D, meter.SupplyDaily, 100, 110),
		item(1, 0, meter.P1M, meter.SupplyPeriodic, 120, 150),
		item(6, 0, meter.PT15M, meter.Consent, 100, 110),
		item(7, meter.P1M, meter.P1M, meter.Consent, 100, 131),
		item(8, meter.PT15M, meter.PT15M, meter.Consent, 100, 110),
	}
	for _, c := range []struct {
		name  string
		field meter.FieldCode
		day   meter.Day
		res   meter.Resolution
		basis meter.Basis
		given meter.Resolution
	}{
		{"a day", 1, 105, meter.P1D, meter.SupplyDaily, meter.P1D},
		{"the closing read", 1, 110, meter.P1D, meter.SupplyDaily, meter.P1D},
		{"a month boundary", 1, 120, meter.P1D, meter.SupplyPeriodic, meter.P1M},
		{"its closing read", 1, 150, meter.P1D, meter.SupplyPeriodic, meter.P1M},
		{"as stored", 6, 105, meter.PT15M, meter.Consent, meter.PT15M},
		{"stored coarser than granted", 6, 105, meter.PT1H, meter.Consent, meter.PT1H},
		{"asked coarser than stored", 7, 105, meter.PT15M, meter.Consent, meter.P1M},
		{"asked finer than stored: nothing left", 8, 105, meter.PT1H, meter.Consent, 0},
	} {
		id := envelope.BlockID{Field: c.field, Day: c.day, Resolution: c.res}
		if got := openedUnder(items, id); got.ID != id || got.Basis != c.basis || got.Given != c.given {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// scripted answers checks as told.
type scripted struct{ err error }

func (s *scripted) Check(context.Context) error { return s.err }
func (s *scripted) Epochs() []uint32            { return nil }
func (s *scripted) Report() []token.Report      { return nil }

// TestMonitor: down at once when the token says it is unavailable, after two
// failures otherwise, up after one success; each role by itself.
func TestMonitor(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	met, err := newMetrics(reg, control.NewFeed(), nil, newPoints(0), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	open, sign := &scripted{}, &scripted{}
	var fresh atomic.Bool
	m := newMonitor(map[Role]token.Health{RoleOpen: open, RoleSign: sign}, fresh.Load, nil, time.Second, slog.New(slog.DiscardHandler), met)
	status := func(service string) bool {
		r, err := m.server.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		return err == nil && r.Status == healthpb.HealthCheckResponse_SERVING
	}
	if status("") || status("open") {
		t.Error("serving before the first check")
	}
	if err := m.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status("open") || status("") || !status("sign") {
		t.Error("serving without a control feed, or not signing without one")
	}
	fresh.Store(true)
	m.lookAtFeed()
	if !status("open") || !status("") {
		t.Error("not serving with a control feed")
	}
	unavailable, other := fmt.Errorf("%w: injected", token.ErrUnavailable), errors.New("slow")
	// Waiting in vain for a turn is not being down.
	busy, late := fmt.Errorf("token x: %w", token.ErrBusy), fmt.Errorf("%w: %w", token.ErrUnavailable, context.DeadlineExceeded)
	for i, step := range []struct {
		err  error
		down bool
	}{
		{nil, false}, {other, false}, {nil, false}, {other, false}, {other, true}, {other, true}, {nil, false},
		{unavailable, true}, {other, true}, {nil, false}, {other, false}, {nil, false},
		{busy, false}, {busy, false}, {late, false}, {nil, false}, {late, false}, {late, true}, {busy, true}, {nil, false},
	} {
		open.err = step.err
		m.check(t.Context(), RoleOpen, open)
		if status("open") == step.down || status("") == step.down || m.healthy() == step.down {
			t.Errorf("step %d: open %v, all %v, healthy %v", i, status("open"), status(""), m.healthy())
		}
		if !status("sign") || status("seal") {
			t.Errorf("step %d: sign %v, seal %v", i, status("sign"), status("seal"))
		}
	}
	fresh.Store(false)
	m.lookAtFeed()
	m.check(t.Context(), RoleOpen, open)
	if status("open") || status("") || !status("sign") {
		t.Error("serving with a stale control feed, or not signing with one")
	}
	open.err = other
	bad := newMonitor(map[Role]token.Health{RoleOpen: open}, fresh.Load, nil, time.Second, slog.New(slog.DiscardHandler), met)
	if bad.start(t.Context()) == nil || status("seal") {
		t.Error("started with a token that fails")
	}
}

// signerFunc is a crypto.Signer whose signature a test chooses.
type signerFunc struct {
	pub  crypto.PublicKey
	sign func(digest []byte) ([]byte, error)
}

func (s signerFunc) Public() crypto.PublicKey { return s.pub }
func (s signerFunc) Sign(_ io.Reader, d []byte, _ crypto.SignerOpts) ([]byte, error) {
	return s.sign(d)
}

func TestSealSigner(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newSealSigner(key, []*ecdsa.PublicKey{&other.PublicKey}); err == nil {
		t.Error("a seal key that is not pinned was accepted")
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newSealSigner(p384, []*ecdsa.PublicKey{&p384.PublicKey}); err == nil {
		t.Error("a P-384 key was accepted")
	}
	s, err := newSealSigner(key, []*ecdsa.PublicKey{&other.PublicKey, &key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	if s.KeyID() != authz.KeyIDOf(&key.PublicKey) {
		t.Error("another key id")
	}
	for i := range 300 { // enough for components with leading zeros
		d := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))
		sig, err := s.SignDigest(d)
		if err != nil {
			t.Fatal(err)
		}
		r, ss := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
		if !ecdsa.Verify(&key.PublicKey, d[:], r, ss) {
			t.Fatal("does not verify")
		}
	}
	for name, der := range map[string][]byte{
		"empty": nil, "not DER": []byte("x"), "zero": {0x30, 6, 2, 1, 0, 2, 1, 0}, "negative": {0x30, 6, 2, 1, 0xff, 2, 1, 1},
		"trailing": {0x30, 6, 2, 1, 1, 2, 1, 1, 0},
	} {
		bad, err := newSealSigner(signerFunc{&key.PublicKey, func([]byte) ([]byte, error) { return der, nil }}, []*ecdsa.PublicKey{&key.PublicKey})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bad.SignDigest([32]byte{}); err == nil {
			t.Errorf("%s accepted as a signature", name)
		}
	}
}

// TestNewRefuses: whatever would serve without a guard does not start.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	profile, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := func() Config {
		return Config{
			ID: "cs1", Profile: profile, SealKeys: []*ecdsa.PublicKey{&key.PublicKey},
			TLS: &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool()},
			Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		}
	}
	for name, change := range map[string]func(*Config){
		"no role":               func(*Config) {},
		"no id":                 func(c *Config) { c.ID = "" },
		"no TLS":                func(c *Config) { c.TLS = nil },
		"TLS 1.2":               func(c *Config) { c.TLS.MinVersion = tls.VersionTLS12 },
		"client certs optional": func(c *Config) { c.TLS.ClientAuth = tls.VerifyClientCertIfGiven },
		"any client cert":       func(c *Config) { c.TLS.ClientAuth = tls.RequireAnyClientCert },
		"system authorities":    func(c *Config) { c.TLS.ClientCAs = nil },
		"no profile":            func(c *Config) { c.Profile = nil },
		"no seal keys":          func(c *Config) { c.SealKeys = nil },
		"open without journal":  func(c *Config) { c.Tokens.Open, c.Verifier = struct{ token.Opener }{}, struct{ TokenVerifier }{} },
		"unknown method":        func(c *Config) { c.Allow = map[string][]string{"Reveal": {"gateway"}} },
	} {
		c := good()
		change(&c)
		if _, err := New(t.Context(), c); err == nil {
			t.Errorf("%s: started", name)
		}
	}
}

func TestPublicHidesCauses(t *testing.T) {
	t.Parallel()
	secret := errors.New("ean 871685900000000004")
	m, err := newMetrics(prometheus.NewRegistry(), control.NewFeed(), nil, newPoints(0), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{health: newMonitor(nil, func() bool { return true }, nil, time.Second, slog.New(slog.DiscardHandler), m)}
	for name, err := range map[string]error{
		"plain":       secret,
		"refusal":     refuse(codes.Internal, cryptopb.ReasonInternal, "internal error", secret),
		"unavailable": s.tokenError(t.Context(), RoleOpen, fmt.Errorf("%w: %w", token.ErrUnavailable, secret)),
		"epoch":       s.tokenError(t.Context(), RoleOpen, fmt.Errorf("%w: %w", token.ErrUnknownEpoch, secret)),
		"busy":        s.tokenError(t.Context(), RoleOpen, fmt.Errorf("%w: %w", token.ErrBusy, secret)),
		"other":       s.tokenError(t.Context(), RoleOpen, secret),
	} {
		if got := status.Convert(public(err)).Message(); got == "" || strings.Contains(got, "8716") {
			t.Errorf("%s: the client is told %q", name, got)
		}
	}
}

// TestSealRateRefusedTogether: what is refused takes nothing of the rate, also
// when many are refused at the same time.
func TestSealRateRefusedTogether(t *testing.T) {
	t.Parallel()
	r := newSealRates(1000, map[string][]string{"Seal": {"ingest"}})
	for range 2 {
		if err := r.wait(t.Context(), "ingest", maxBlocks); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 20000 {
				if r.wait(t.Context(), "ingest", maxBlocks) == nil {
					t.Error("sealed beyond the rate")
					return
				}
			}
		})
	}
	all.Wait()
	if left := r["ingest"].Tokens(); left < 0 {
		t.Errorf("after refusals alone %.0f blocks must be waited for", -left)
	}
}
