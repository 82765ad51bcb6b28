package custodian_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/custodian"
	"kluis/internal/authn"
	"kluis/internal/devpki"
	"kluis/internal/postgres"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/journaltest"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// TestRealServers goes through a key's life with cryptoservers on real tokens,
// behind real TLS.
func TestRealServers(t *testing.T) {
	t.Parallel()
	h := hsmtest.New(t)
	profile := must(meter.ParseProfile(meter.NL()))
	ca := must(devpki.NewCA("operator"))
	verifier := must(authn.NewVerifier(time.Now, authn.Issuer{
		URL: "https://issuer.test", Audience: "urn:kluis:test", Keys: must(authn.PinnedKeys(must(os.ReadFile(h.JWKSFile)))), MaxLifetime: time.Minute,
	}))
	var addresses []string
	for i := range h.Servers {
		tokens := h.Servers[i].Open(t)
		cert := must(ca.Issue(devpki.Leaf{CommonName: "cryptoserver-" + string(rune('1'+i)), Hosts: []string{"127.0.0.1"}}))
		s, err := cryptoserver.New(t.Context(), cryptoserver.Config{
			ID: "cs" + string(rune('1'+i)), Version: "test", Profile: profile, SealKeys: h.SealKeys, Verifier: verifier,
			TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool()},
			Allow: map[string][]string{
				"Mint": {"custodian"}, "Seal": {"custodian"}, "Rewrap": {"custodian"}, "Reseal": {"custodian"},
				"SignControl": {"custodian"}, "PutControl": {"custodian"}, "Status": {"custodian"},
			},
			Tokens:  cryptoserver.Tokens{Open: tokens.Opener(), Seal: tokens.Sealer(), Mint: tokens.Minter(), Rotate: tokens.Rotator()},
			Journal: journaltest.New(t),
			Clock:   time.Now, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), CheckEvery: 50 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, l) }()
		t.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		addresses = append(addresses, l.Addr().String())
	}
	cert := must(ca.Issue(devpki.Leaf{CommonName: "custodian"}))
	pool, err := client.New(client.Config{Addresses: addresses, TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: ca.Pool()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })

	w := &world{t: t, db: pgtest.New(t), log: &logBuffer{}}
	w.owner = w.db.Open(t, migrations.RoleOwner)
	store, err := postgres.NewCustodian(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleCustodian)})
	w.must(err)
	t.Cleanup(func() { store.Close() })
	w.store = backend.CustodianStore{DB: store}
	w.ingest, err = postgres.NewIngest(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleIngest)})
	w.must(err)
	t.Cleanup(func() { w.ingest.Close() })
	w.copy = filepath.Join(t.TempDir(), "feed")
	servers := backend.CustodianServers{Pool: pool}
	c, err := custodian.New(w.store, servers, must(authz.NewSealKeys(h.SealKeys...)), w.copy, slog.New(slog.NewJSONHandler(w.log, nil)), time.Now)
	w.must(err)
	t.Cleanup(func() { c.Close() })

	w.run(c)
	select {
	case <-c.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("never ready")
	}
	acked := func(acks []custodian.Ack, err error) {
		t.Helper()
		w.must(err)
		if len(acks) != 2 {
			t.Fatalf("%d servers acknowledged", len(acks))
		}
		for _, a := range acks {
			w.must(a.Err)
		}
	}
	if _, err := c.Rewrap(t.Context(), custodian.RewrapOptions{}); !errors.Is(err, custodian.ErrRefused) {
		t.Errorf("before any epoch: %v", err)
	}
	if _, err := c.Activate(t.Context(), 2); !errors.Is(err, custodian.ErrLacking) || strings.Count(err.Error(), "has no KEK") != 8 {
		t.Errorf("an epoch that no token has: %v", err)
	}
	acked(c.Activate(t.Context(), 1))

	// Two months of two metering points.
	var specs []envelope.KeySpec
	for n := range 2 {
		for _, m := range testMonths {
			specs = append(specs, envelope.KeySpec{EAN: ean(n), Class: meter.Registers, Month: m})
		}
	}
	keys, err := pool.Mint(t.Context(), specs)
	w.must(err)
	batch := postgres.Batch{Keys: keys}
	for i, k := range keys {
		var plain []envelope.PlainBlock
		for d := range meter.Day(20) {
			plain = append(plain, envelope.PlainBlock{Field: 1, Version: 1, Block: meter.Block{
				Day: k.Month.First() + d, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{meter.Value(1000*i + int(d))},
			}})
		}
		sealed, err := pool.Seal(t.Context(), k.EAN, []envelope.KeyRecord{k}, plain)
		w.must(err)
		for j, s := range sealed {
			batch.Blocks = append(batch.Blocks, postgres.Row{
				EAN: k.EAN, Field: 1, Day: plain[j].Block.Day, Version: 1, Resolution: meter.P1D, KeyID: k.ID, ValueCount: 1,
				ContentMAC: s.ContentMAC, Ciphertext: s.Ciphertext,
			})
		}
	}
	w.must(w.ingest.Commit(t.Context(), batch))

	// open says how many blocks open, by having them sealed again for nothing.
	open := func() (n int) {
		t.Helper()
		for _, k := range w.keyRows() {
			blocks, err := w.store.BlocksUnder(t.Context(), k)
			w.must(err)
			minted, err := pool.Mint(t.Context(), []envelope.KeySpec{{EAN: k.EAN, Class: k.Class, Month: k.Month, Occupancy: k.Occupancy}})
			w.must(err)
			out, err := pool.Reseal(t.Context(), k, minted[0], blocks)
			w.must(err)
			for _, r := range out {
				if r.Err != nil {
					t.Errorf("a block of %s does not open: %v", k.Month, r.Err)
					continue
				}
				n++
			}
		}
		return n
	}
	if n := open(); n != 80 {
		t.Fatalf("%d blocks open", n)
	}
	st, err := c.RotateDataKeys(t.Context(), custodian.KeySelection{}, custodian.RotateOptions{Grace: shortGrace})
	if err != nil || st.Rotated != 4 || st.Blocks != 80 || st.Erased != 4 || st.Damaged != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	acked(st.Acks, nil)
	if n := open(); n != 80 {
		t.Errorf("%d blocks open after the rotation", n)
	}
	// The keys from before, out of a backup, open nothing any more.
	minted, err := pool.Mint(t.Context(), specs[:1])
	w.must(err)
	old := []envelope.SealedBlock{{Field: 1, Day: batch.Blocks[0].Day, Resolution: meter.P1D, Version: 1, Ciphertext: batch.Blocks[0].Ciphertext}}
	for range 4 { // each server
		if _, err := servers.Reseal(t.Context(), keys[0], minted[0], old); !errors.Is(err, custodian.ErrErased) {
			t.Errorf("a replaced key: %v, want ErrErased", err)
		}
	}

	erased, err := c.Erase(t.Context(), custodian.KeySelection{EAN: ean(0)}, nil)
	if err != nil || erased.Keys != 2 || erased.Deleted != 2 || erased.Left != 0 {
		t.Errorf("%+v, %v", erased, err)
	}
	acked(erased.Acks, nil)
	before, err := c.EraseBefore(t.Context(), testMonths[1], nil)
	if err != nil || before.Deleted != 1 {
		t.Errorf("%+v, %v", before, err)
	}
	acked(before.Acks, nil)
	if n := open(); n != 20 {
		t.Errorf("%d blocks open after the erasures", n)
	}
	rewrapped, err := c.Rewrap(t.Context(), custodian.RewrapOptions{})
	if err != nil || rewrapped.Total != 0 {
		t.Errorf("%+v, %v", rewrapped, err)
	}
	status, err := c.Status(t.Context())
	w.must(err)
	w.must(status.Database)
	if status.ActiveEpoch != 1 || status.Before != testMonths[1] || len(status.Epochs) != 1 || status.HeartbeatAt.IsZero() ||
		status.Epochs[0].Keys.Keys != 1 || status.Epochs[0].Deleted != (custodian.ErasedCount{Erased: 7}) ||
		!slices.Equal(status.Epochs[0].Holders, []string{"cs1", "cs2"}) || !status.Epochs[0].OnlyLogically() {
		t.Errorf("%+v", status)
	}
	for _, s := range status.Servers {
		if s.Err != nil || s.Sequence != status.Sequence || s.ActiveEpoch != 1 || len(s.Tokens) != 4 {
			t.Errorf("%+v", s)
		}
	}
}
