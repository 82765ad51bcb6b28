package cryptoserver_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/token"
	"kluis/meter"
)

// serves asks the health service for a service name.
func (w *world) serves(service string) bool {
	w.t.Helper()
	conn, err := grpc.NewClient(w.address, grpc.WithTransportCredentials(credentials.NewTLS(w.clientTLS("gateway"))))
	w.must(err)
	defer conn.Close()
	r, err := healthpb.NewHealthClient(conn).Check(w.t.Context(), &healthpb.HealthCheckRequest{Service: service})
	w.must(err)
	return r.Status == healthpb.HealthCheckResponse_SERVING
}

// minimal calls pass all checks before that of the control feed.
func minimal(w *world, m *market) map[string]func() error {
	key := func(k envelope.KeyRecord) *cryptopb.DataKey {
		return &cryptopb.DataKey{
			Id: k.ID[:], Ean: uint64(k.EAN.Int64()), Class: uint32(k.Class), Month: int32(k.Month), Occupancy: int32(k.Occupancy), KekEpoch: k.Epoch, Wrapped: k.Wrapped, Mac: k.MAC[:],
		}
	}
	digest := w.profile.Digest()
	d := day("2024-04-10")
	w.mayAsk(m.new)
	portal := w.portal()
	who, _ := m.identity("2023-01-01", 1, livingAt(w.t, "Xantippe Overdam", "1234AB", "17", ""))
	return map[string]func() error{
		"TakeSupplierStep": func() error {
			_, err := w.raw(w.clientTLS("gateway")).TakeSupplierStep(w.t.Context(), &cryptopb.TakeSupplierStepRequest{
				AccessToken: w.supervisorToken(portal, m.old, true), SupplierRecord: portal.record, Previous: m.old.record, Suspend: true,
			})
			return err
		},
		"TakeStep": func() error {
			_, err := w.raw(w.clientTLS("gateway")).TakeStep(w.t.Context(), &cryptopb.TakeStepRequest{
				AccessToken: w.consentToken(m.new), SupplierRecord: m.new.record, ProfileDigest: digest[:],
				Previous: m.file, Step: request(m.new, 0x21).Encode(),
			})
			return err
		},
		"SealIdentity": func() error {
			p := livingAt(w.t, "Xantippe Overdam", "1234AB", "17", "")
			_, err := w.raw(w.clientTLS("ingest")).SealIdentity(w.t.Context(), &cryptopb.SealIdentityRequest{Identities: []*cryptopb.PlainIdentity{{
				Key: key(who.Key), Version: 2, Person: &cryptopb.Person{Name: p.Name, Street: "Dorpsstraat", HouseNumber: 17, Postcode: "1234AB", City: "Ons Dorp"},
			}}})
			return err
		},
		"OpenIdentity": func() error {
			_, err := w.raw(w.clientTLS("gateway")).OpenIdentity(w.t.Context(), &cryptopb.OpenIdentityRequest{
				AccessToken: w.viewToken(portal, authz.Agent, m.point), SupplierRecord: portal.record, ProfileDigest: digest[:],
				Units: []*cryptopb.IdentityUnit{{LegalFile: m.file, InteractionId: make([]byte, 16)}},
			})
			return err
		},
		"FindIndex": func() error {
			_, err := w.raw(w.clientTLS("gateway")).FindIndex(w.t.Context(), &cryptopb.FindIndexRequest{
				AccessToken: w.findToken(portal, "1234AB", "17"), SupplierRecord: portal.record, ProfileDigest: digest[:],
			})
			return err
		},
		"Open": func() error {
			_, err := w.raw(w.clientTLS("gateway")).Open(w.t.Context(), &cryptopb.OpenRequest{
				AccessToken: w.token(m.new), SupplierRecord: m.new.record, ProfileDigest: digest[:],
				Units: []*cryptopb.OpenUnit{{
					LegalFile: m.file, InteractionId: make([]byte, 16), Purpose: uint32(meter.EnergyManagement),
					FromDay: int32(d), ToDay: int32(d + 1), Fields: []uint32{1},
				}},
			})
			return err
		},
		"Mint": func() error {
			_, err := w.raw(w.clientTLS("ingest")).Mint(w.t.Context(), &cryptopb.MintRequest{Keys: []*cryptopb.MintKey{{Ean: uint64(m.ean.Int64()), Class: 1, Month: 600}}})
			return err
		},
		"Seal": func() error {
			k := m.keys[m.key(envelope.KeySpec{Class: meter.Registers, Month: d.Month()})]
			_, err := w.raw(w.clientTLS("ingest")).Seal(w.t.Context(), &cryptopb.SealRequest{
				Ean: uint64(m.ean.Int64()), Keys: []*cryptopb.DataKey{key(k)},
				Blocks: []*cryptopb.PlainBlock{{Field: 1, Day: int32(d), Resolution: uint32(meter.P1D), Version: 9, Start: int64(meter.Null), Values: []int64{1}}},
			})
			return err
		},
		"Rewrap": func() error {
			_, err := w.raw(w.clientTLS("custodian")).Rewrap(w.t.Context(), &cryptopb.RewrapRequest{Keys: []*cryptopb.DataKey{key(m.keys[0])}})
			return err
		},
		"Reseal": func() error {
			to, err := w.as("ingest").Mint(w.t.Context(), []envelope.KeySpec{{EAN: m.ean, Class: m.keys[0].Class, Month: m.keys[0].Month}})
			if err != nil {
				to = m.keys[:1]
			}
			_, err = w.raw(w.clientTLS("custodian")).Reseal(w.t.Context(), &cryptopb.ResealRequest{
				Ean: uint64(m.ean.Int64()), From: key(m.keys[0]), To: key(to[0]), Blocks: []*cryptopb.SealedBlock{{Field: 1, Day: int32(d), Version: 1}},
			})
			return err
		},
	}
}

// TestStaleFeed: a server that does not know what was erased of late does
// nothing with data keys, and its health says so; signing goes on.
func TestStaleFeed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	calls := minimal(w, m)
	signed := 0
	check := func(when string, fresh bool) {
		t.Helper()
		signed++
		for name, call := range calls {
			err := call()
			if fresh && err != nil || !fresh && reasonOf(err) != cryptopb.ReasonControlStale {
				t.Errorf("%s: %s: %v", when, name, err)
			}
		}
		for service, want := range map[string]bool{"open": fresh, "seal": fresh, "mint": fresh, "rotate": fresh, "": fresh, "sealkey": true, "sign": true} {
			eventually(t, fmt.Sprintf("%s: health of %q is %v", when, service, want), func() bool { return w.serves(service) == want })
		}
		first := day("2024-05-01") + meter.Day(signed)
		m.step(authz.SetOptOut{Days: meter.DayRange{From: first, To: first + 1}})
		w.supplier(fmt.Sprintf("87123450%04d", 100+signed), "Late Energy")
		w.token(m.new)
		if st := w.as("custodian").Status(t.Context())[0]; st.Err != nil || !st.Healthy || st.ControlSequence != 1 {
			t.Errorf("%s: status %+v", when, st)
		}
	}
	check("recent", true)
	_, err := w.feed.Beat(t.Context())
	w.must(err)
	w.clock.advance(control.MaxAge - 5*time.Millisecond)
	check("nearly a minute old", true)
	w.clock.advance(5 * time.Millisecond)
	check("a minute old", false)
	if _, err := w.as("gateway").Open(t.Context(), m.ask(m.new, energy(days("2024-04-01", "2024-04-02"), importLow))); !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrRefused) {
		t.Errorf("what the client makes of it: %v", err)
	}
	if age := w.counter("kluis_cryptoserver_control_age_seconds"); age <= 60 {
		t.Errorf("the metric of its age is %v", age)
	}
	if w.counter("kluis_cryptoserver_token_up", "role", "open") != 1 {
		t.Error("the token is blamed for it")
	}
	_, err = w.feed.Beat(t.Context())
	w.must(err)
	check("after a heartbeat", true)
	if log := w.log.String(); strings.Count(log, "control feed is stale") != 1 {
		t.Error("that it grew stale is not in the log once")
	}
}

// TestNoFeedYet: a server that has just started serves once it has the feed,
// which it takes in in pieces.
func TestNoFeedYet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var heads [][]byte
	for i := range 20 {
		w.append(control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{{byte(i)}}})
		_, head := w.feed.Relay()
		heads = append(heads, head)
	}
	entries, newest := w.feed.Relay()
	s, err := cryptoserver.New(t.Context(), cryptoserver.Config{
		ID: "cs2", TLS: w.serverTLS("cryptoserver-2"), Allow: allow(), Profile: w.profile, SealKeys: w.hsm.SealKeys, Verifier: w.verifier,
		Tokens: cryptoserver.Tokens{Open: w.open}, Journal: w.newJournal(), Clock: w.clock.now, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		CheckEvery: 20 * time.Millisecond,
	})
	w.must(err)
	w.address = w.serve(s)
	if w.serves("open") {
		t.Error("open without a feed")
	}
	c, err := client.New(client.Config{Addresses: []string{w.address}, TLS: w.clientTLS("relay")})
	w.must(err)
	defer c.Close()
	put := func(first int, entries [][]byte, head []byte) uint64 {
		t.Helper()
		known, err := c.PutControl(t.Context(), w.address, uint64(first), entries, head)
		w.must(err)
		return known
	}
	// Entry n has the head heads[n-2].
	if n := put(11, entries[10:], newest); n != 0 {
		t.Errorf("knows %d entries after those from 11 on", n)
	}
	if n := put(1, entries[:12], heads[10]); n != 12 {
		t.Errorf("knows %d entries after the first 12", n)
	}
	if n := put(9, entries[8:], newest); n != 21 {
		t.Errorf("knows %d entries after all", n)
	}
	if n := put(1, entries, newest); n != 21 {
		t.Errorf("knows %d entries after all once more", n)
	}
	eventually(t, "it serves", func() bool { return w.serves("open") })
	if st := c.Addresses(); !slices.Equal(st, []string{w.address}) {
		t.Errorf("addresses %v", st)
	}
	if _, err := c.PutControl(t.Context(), "127.0.0.1:1", 1, entries, newest); err == nil {
		t.Error("sent to an address that is not configured")
	}
}

// TestRelay: whoever relays the feed, and whoever writes the table it comes
// from, can withhold it, and nothing else.
func TestRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	erased := control.KeyID{1}
	_, oldHead := w.feed.Relay()
	w.append(control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{erased}})
	_, shortHead := w.feed.Relay()
	w.append(control.Entry{Kind: control.EraseBefore, Cause: control.CauseRetention, Month: 500})
	entries, head := w.feed.Relay()
	relay := w.as("relay")

	// What comes next, and another feed made by somebody with a server of his
	// own: all are signed.
	sign := func(after control.Head, e control.Entry) (entry, head []byte) {
		t.Helper()
		e.At = w.clock.now()
		b, err := e.Encode()
		w.must(err)
		head, err = w.as("custodian").SignControl(t.Context(), after, b)
		w.must(err)
		return b, head
	}
	next, nextHead := sign(w.feed.Head(), control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{{2}}})
	nextHash := w.feed.Head().Hash.Next(next)
	w.seal.claim(2)
	after, afterHead := sign(control.Head{Sequence: 4, Hash: nextHash}, control.Entry{Kind: control.ActivateEpoch, Epoch: 2})
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	forge := func(h control.Head, as authz.KeyID) []byte {
		t.Helper()
		h.At = w.clock.now()
		b, err := h.Sign(softSigner{stranger, as})
		w.must(err)
		return b
	}
	forged := control.Head{Sequence: 4, Hash: nextHash}
	flipped := bytes.Clone(nextHead)
	flipped[len(flipped)/2] ^= 1
	genesis, err := control.Entry{At: w.clock.now(), Kind: control.ActivateEpoch, Epoch: 9}.Encode()
	w.must(err)
	unknown := bytes.Clone(next)
	unknown[len("kluis/control-entry")+4+1+8] = 77 // its kind
	unknownHead, err := w.as("custodian").SignControl(t.Context(), control.Head{Sequence: 4, Hash: w.feed.Head().Hash.Next(unknown)}, nil)
	w.must(err)
	before := w.as("custodian").Status(t.Context())[0]
	for _, c := range []struct {
		name    string
		first   uint64
		entries [][]byte
		head    []byte
		want    error
	}{
		{"signed with a key that is not pinned", 4, [][]byte{next}, forge(forged, authz.KeyIDOf(&stranger.PublicKey)), client.ErrEvidence},
		{"signed with another key under a pinned id", 4, [][]byte{next}, forge(forged, authz.KeyIDOf(w.hsm.SealKeys[0])), client.ErrEvidence},
		{"a bit of the head", 4, [][]byte{next}, flipped, client.ErrEvidence},
		{"no head", 4, [][]byte{next}, nil, client.ErrEvidence},
		{"a legal file as head", 4, [][]byte{next}, w.point(meter.Gas).file, client.ErrEvidence},
		{"another entry under the head", 4, [][]byte{after}, nextHead, client.ErrControlFork},
		{"a bit of the entry", 4, [][]byte{append(bytes.Clone(next[:len(next)-1]), next[len(next)-1]^1)}, nextHead, client.ErrControlFork},
		{"entries in another order", 4, [][]byte{after, next}, afterHead, client.ErrControlFork},
		{"an entry left out", 4, [][]byte{after, after}, afterHead, client.ErrControlFork},
		{"an entry put in between", 4, [][]byte{next, next}, afterHead, client.ErrControlFork},
		{"another number", 4, [][]byte{entries[2]}, nextHead, client.ErrControlFork},
		{"an entry that this version does not know", 4, [][]byte{unknown}, unknownHead, client.ErrRefused},
		{"an older head in the place of a newer one", 1, entries[:2], shortHead, nil},
		{"the first head", 1, entries[:1], oldHead, nil},
		{"the newest once more", 1, entries, head, nil},
		{"other entries that are known already", 1, [][]byte{genesis, genesis, genesis}, head, nil},
		{"a gap", 5, [][]byte{after}, afterHead, nil},
		{"too few entries", 4, [][]byte{next}, afterHead, nil},
	} {
		known, err := relay.PutControl(t.Context(), w.address, c.first, c.entries, c.head)
		if c.want == nil && (err != nil || known != 3) || c.want != nil && (!errors.Is(err, c.want) || !errors.Is(err, client.ErrRefused)) {
			t.Errorf("%s: %d, %v", c.name, known, err)
		}
		st := w.as("custodian").Status(t.Context())[0]
		if st.ControlSequence != before.ControlSequence || !st.ControlAt.Equal(before.ControlAt) || st.ActiveEpoch != before.ActiveEpoch {
			t.Errorf("%s: the feed is now %+v", c.name, st)
		}
	}
	if w.counter("kluis_cryptoserver_erased_keys") != 1 || w.counter("kluis_cryptoserver_control_sequence") != 3 {
		t.Error("what is erased has changed")
	}
	if w.counter("kluis_cryptoserver_refusals_total", "method", "PutControl", "reason", string(cryptopb.ReasonControlFork)) == 0 ||
		!strings.Contains(w.log.String(), "the control feed contradicts the one known") {
		t.Error("a forked feed is not told")
	}

	// An older feed put back, with a head of today: not a relay's, but what a
	// restored database would lead to. At once it may be a race; later it is not.
	restored, err := control.OpenHead(shortHead, must(authz.NewSealKeys(w.hsm.SealKeys...)))
	w.must(err)
	if _, err := w.as("custodian").SignControl(t.Context(), restored, nil); !errors.Is(err, client.ErrControlFork) {
		t.Errorf("the server signed an older feed than it knows: %v", err)
	}
	w.clock.advance(control.MaxSkew + time.Second)
	if _, err := w.as("custodian").SignControl(t.Context(), restored, nil); !errors.Is(err, client.ErrControlFork) {
		t.Errorf("the server signed an older feed than it knows: %v", err)
	}
	other := restored
	other.Sequence, other.Hash[0] = 3, 1
	if _, err := w.as("custodian").SignControl(t.Context(), other, nil); !errors.Is(err, client.ErrControlFork) {
		t.Errorf("the server signed another feed than it knows: %v", err)
	}
	today := signedElsewhere(w, restored)
	if _, err := relay.PutControl(t.Context(), w.address, 1, entries[:2], today); !errors.Is(err, client.ErrControlFork) {
		t.Errorf("an older feed with a head of today: %v", err)
	}

	// The true one is taken in.
	if known, err := relay.PutControl(t.Context(), w.address, 4, [][]byte{next, after}, afterHead); err != nil || known != 5 {
		t.Errorf("the true feed: %d, %v", known, err)
	}
}

// signedElsewhere is a head signed now by a pinned server that has just started
// and knows no feed.
func signedElsewhere(w *world, h control.Head) []byte {
	w.t.Helper()
	s, err := cryptoserver.New(w.t.Context(), cryptoserver.Config{
		ID: "cs9", TLS: w.serverTLS("cryptoserver-9"), Allow: allow(), Profile: w.profile, SealKeys: w.hsm.SealKeys, Verifier: w.verifier,
		Tokens: cryptoserver.Tokens{Seal: w.seal}, Journal: w.newJournal(), Clock: w.clock.now, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	w.must(err)
	c, err := client.New(client.Config{Addresses: []string{w.serve(s)}, TLS: w.clientTLS("custodian")})
	w.must(err)
	defer c.Close()
	signed, err := c.SignControl(w.t.Context(), h, nil)
	w.must(err)
	return signed
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestFutureHead: once taken in it would hide every true one.
func TestFutureHead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.clock.advance(control.MaxSkew + time.Second)
	future := signedElsewhere(w, w.feed.Head())
	w.clock.advance(-time.Second)
	soon := signedElsewhere(w, w.feed.Head())
	w.clock.advance(-control.MaxSkew)
	if _, err := w.as("relay").PutControl(t.Context(), w.address, 0, nil, future); !errors.Is(err, client.ErrEvidence) {
		t.Errorf("a head from the future: %v", err)
	}
	if !w.serves("open") {
		t.Error("it made the feed useless")
	}
	if _, err := w.as("relay").PutControl(t.Context(), w.address, 0, nil, soon); err != nil {
		t.Errorf("within the difference that clocks may have: %v", err)
	}
	if !w.serves("open") {
		t.Error("it made the feed useless")
	}
}

// TestSignControl: the server computes the chain and puts in its own time.
func TestSignControl(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := must(authz.NewSealKeys(w.hsm.SealKeys...))
	at := w.feed.Head()
	entry := must(control.Entry{At: w.clock.now().Add(-time.Hour), Kind: control.EraseKeys, Cause: control.CauseRetention, Keys: []control.KeyID{{1}}}.Encode())
	signed, err := w.as("custodian").SignControl(t.Context(), at, entry)
	w.must(err)
	head, err := control.OpenHead(signed, keys)
	w.must(err)
	if head.Sequence != 2 || head.Hash != at.Hash.Next(entry) || !head.At.Equal(w.clock.now()) {
		t.Errorf("%+v", head)
	}
	w.clock.advance(time.Second)
	signed, err = w.as("custodian").SignControl(t.Context(), at, nil)
	w.must(err)
	if head, err = control.OpenHead(signed, keys); err != nil || head.Sequence != 1 || head.Hash != at.Hash || !head.At.Equal(w.clock.now()) {
		t.Errorf("a heartbeat: %+v, %v", head, err)
	}
	api := w.raw(w.clientTLS("custodian"))
	for name, r := range map[string]*cryptopb.SignControlRequest{
		"no hash":                 {Sequence: 1},
		"a short hash":            {Sequence: 1, Hash: at.Hash[:31]},
		"a hash without an entry": {Sequence: 0, Hash: at.Hash[:]},
		"no hash of an entry":     {Sequence: 1, Hash: make([]byte, 32)},
		"the last number":         {Sequence: 1<<64 - 1, Hash: at.Hash[:]},
		"not an entry":            {Sequence: 1, Hash: at.Hash[:], Entry: []byte("entry")},
		"a byte too many":         {Sequence: 1, Hash: at.Hash[:], Entry: append(bytes.Clone(entry), 0)},
	} {
		if _, err := api.SignControl(t.Context(), r); reasonOf(err) != cryptopb.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.seal.claim(3)
	w.append(control.Entry{Kind: control.ActivateEpoch, Epoch: 3})
	for name, e := range map[string]control.Entry{
		"the active epoch destroyed":  {Kind: control.DestroyEpoch, Epoch: 3},
		"an epoch to come destroyed":  {Kind: control.DestroyEpoch, Epoch: 4},
		"an older epoch made active":  {Kind: control.ActivateEpoch, Epoch: 2},
		"the active epoch once again": {Kind: control.ActivateEpoch, Epoch: 3},
		"an epoch that nobody has":    {Kind: control.ActivateEpoch, Epoch: 4},
		"the last epoch there can be": {Kind: control.ActivateEpoch, Epoch: control.MaxEpoch},
	} {
		e.At = w.clock.now()
		if _, err := w.as("custodian").SignControl(t.Context(), w.feed.Head(), must(e.Encode())); !errors.Is(err, client.ErrStepRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoEpoch: before an epoch is active nothing is minted, and the text says
// what to do.
func TestNoEpoch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world, _ *cryptoserver.Config) { w.noFeed = true })
	_, err := w.feed.Beat(t.Context())
	w.must(err)
	_, err = w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: w.point(meter.Gas).ean, Class: meter.Registers, Month: 600}})
	var e *client.Error
	if !errors.As(err, &e) || e.Reason != cryptopb.ReasonNoEpoch || !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "rotate-kek") {
		t.Errorf("%v", err)
	}
	w.append(control.Entry{Kind: control.ActivateEpoch, Epoch: 1})
	if _, err = w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: w.point(meter.Gas).ean, Class: meter.Registers, Month: 600}}); err != nil {
		t.Errorf("%v", err)
	}
}

// TestErased: what is erased is not opened, whether its row is there or not,
// and nothing is sealed under it.
func TestErased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	april := days("2024-04-01", "2024-05-01")
	r := energy(april, importLow, importIntervals)
	honest := m.ask(m.new, r)
	if got := w.opened(honest); len(got.Faults) != 0 {
		t.Fatalf("%+v", got.Faults)
	}
	spec := envelope.KeySpec{Class: meter.Registers, Month: april.From.Month()}
	key := m.keys[m.key(spec)]
	w.open.forgot.Store(0)
	w.append(control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, EAN: m.ean, Keys: []control.KeyID{key.ID}})
	if w.open.forgot.Load() != 1 {
		t.Error("the token was not told to forget")
	}
	handles := uint64(0)
	for _, tok := range w.as("custodian").Status(t.Context())[0].Tokens {
		handles += tok.Handles
	}
	if handles != 0 {
		t.Errorf("%d unwrapped keys are left", handles)
	}

	closing := april.To // the closing read has its own month's key
	check := func(name string, q client.OpenRequest, want []authz.Withheld) {
		t.Helper()
		w.open.opened()
		got := w.opened(q)
		erased := 0
		for i, b := range q.Units[0].Blocks {
			inside := slices.ContainsFunc(want, func(x authz.Withheld) bool { return x.Field == b.Field && x.Days.Contains(b.Day) })
			faulted := slices.Contains(got.Faults, client.Fault{Block: i, Reason: client.Erased})
			if inside != faulted {
				t.Errorf("%s: field %d on %s: erased %v", name, b.Field, b.Day, faulted)
			}
			if inside {
				erased++
			}
		}
		if len(got.Faults) != erased || !slices.Equal(got.Withheld, want) {
			t.Errorf("%s: %d faults, withheld %v", name, len(got.Faults), got.Withheld)
		}
		for f, values := range map[meter.FieldCode]map[meter.Day][]meter.Value{importLow: valuesOf(got, importLow), importIntervals: valuesOf(got, importIntervals)} {
			for d, v := range values {
				gone := slices.ContainsFunc(want, func(x authz.Withheld) bool { return x.Field == f && x.Days.Contains(d) })
				for _, value := range v {
					if (value == meter.Null) != gone {
						t.Fatalf("%s: field %d on %s: %d", name, f, d, value)
					}
				}
			}
		}
		if n := w.open.opened(); n != len(q.Units[0].Blocks)-erased {
			t.Errorf("%s: the token was asked to open %d of %d blocks", name, n, len(q.Units[0].Blocks))
		}
		if rc, err := envelope.ParseReceipt(got.Receipt); err != nil || int(rc.Refused) != erased || rc.Damaged != 0 {
			t.Errorf("%s: receipt %+v, %v", name, rc, err)
		}
	}
	gone := []authz.Withheld{{Field: importLow, Days: april, Reason: meter.Erased}}
	check("erased", m.ask(m.new, r), gone)

	// The row is gone, or another's stands in its place.
	q := m.ask(m.new, r)
	for i := range q.Units[0].Blocks {
		if b := &q.Units[0].Blocks[i]; m.keys[b.Key].ID == key.ID {
			b.Key = []int{envelope.NoKey, 9999, m.key(envelope.KeySpec{Class: meter.Registers, Month: closing.Month()})}[i%3]
		}
	}
	check("its row is gone", q, gone)

	// The record as it was, under another id: the ciphertext is bound to its own.
	q = m.ask(m.new, energy(days("2024-04-10", "2024-04-11"), importLow))
	u := &q.Units[0]
	for i := range u.Blocks {
		u.Blocks[i].Ciphertext[4] ^= 1
	}
	u.Keys[u.Blocks[0].Key].ID[0] ^= 1
	if got := w.opened(q); len(got.Faults) != len(u.Blocks) || got.Faults[0].Reason != client.Damaged {
		t.Errorf("an erased key under another id: %+v", got.Faults)
	}

	// Nothing is sealed under it.
	before := w.seal.sealed.Load()
	if _, err := w.as("ingest").Seal(t.Context(), m.ean, []envelope.KeyRecord{key}, []envelope.PlainBlock{w.registerBlock(importLow, april.From)}); !errors.Is(err, client.ErrErased) {
		t.Errorf("sealed under an erased key: %v", err)
	}
	if w.seal.sealed.Load() != before {
		t.Error("the token was asked to seal under an erased key")
	}

	// All of the months before one.
	w.append(control.Entry{Kind: control.EraseBefore, Cause: control.CauseRetention, Month: april.From.Month()})
	march := days("2024-03-01", "2024-04-01")
	check("too old", m.ask(m.new, energy(march, importIntervals)), []authz.Withheld{{Field: importIntervals, Days: march, Reason: meter.Erased}})
	check("not too old", m.ask(m.new, energy(days("2024-05-01", "2024-06-01"), importIntervals)), nil)
	old := m.keys[m.key(envelope.KeySpec{Class: meter.Registers, Month: march.From.Month()})]
	if _, err := w.as("ingest").Seal(t.Context(), m.ean, []envelope.KeyRecord{old}, []envelope.PlainBlock{w.registerBlock(importLow, march.From)}); !errors.Is(err, client.ErrErased) {
		t.Errorf("sealed under a key that is too old: %v", err)
	}
	if _, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: m.ean, Class: meter.Registers, Month: march.From.Month()}}); !errors.Is(err, client.ErrErased) {
		t.Errorf("minted for a month that is erased: %v", err)
	}

	// An epoch given up takes its keys with it, though the token has it still.
	w.seal.claim(2)
	w.append(control.Entry{Kind: control.ActivateEpoch, Epoch: 2})
	w.append(control.Entry{Kind: control.DestroyEpoch, Epoch: 1})
	may := days("2024-05-01", "2024-06-01")
	check("of an epoch given up", m.ask(m.new, energy(may, importIntervals)), []authz.Withheld{{Field: importIntervals, Days: may, Reason: meter.Erased}})
	if n := w.counter("kluis_cryptoserver_blocks_total", "outcome", "erased"); n == 0 {
		t.Error("the metric counts none")
	}
}

// TestErasureIsDone: PutControl answers once nothing erased can be opened any
// more: calls that began before have ended, and the tokens have forgotten.
func TestErasureIsDone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))
	h := &hold{make(chan struct{}), make(chan struct{})}
	w.open.hold.Store(h)
	read := make(chan error, 1)
	go func() {
		_, err := w.as("gateway").Open(context.Background(), q)
		read <- err
	}()
	<-h.entered
	w.open.forgot.Store(0)
	put := make(chan error, 1)
	entry := control.Entry{At: w.clock.now(), Kind: control.EraseKeys, Cause: control.CauseRequest, EAN: m.ean, Keys: []control.KeyID{m.keys[0].ID}}
	go func() {
		_, err := w.feed.Append(context.Background(), entry)
		put <- err
	}()
	eventually(t, "the erasure is taken in", func() bool { return w.counter("kluis_cryptoserver_erased_keys") == 1 })
	// Others go on meanwhile.
	if got := w.opened(m.ask(m.new, energy(days("2024-05-01", "2024-05-03"), importLow))); got.Err != nil || len(got.Faults) != 0 {
		t.Errorf("another call: %+v", got)
	}
	select {
	case err := <-put:
		t.Fatalf("the erasure is said to be done with a read of before in progress: %v", err)
	case err := <-read:
		t.Fatalf("the read ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if w.open.forgot.Load() != 0 {
		t.Error("the token forgot too early: the read unwraps the key again")
	}
	close(h.release)
	if err := <-read; err != nil {
		t.Errorf("the read in progress: %v", err)
	}
	if err := <-put; err != nil || w.open.forgot.Load() != 1 {
		t.Errorf("the erasure: %v, forgot %d times", err, w.open.forgot.Load())
	}

	// A token that cannot forget: the erasure holds, and is not said to be done.
	cannot := fmt.Errorf("%w: injected", token.ErrUnavailable)
	w.open.keep.Store(&cannot)
	april := m.keys[m.key(envelope.KeySpec{Class: meter.Registers, Month: day("2024-04-01").Month()})]
	_, err := w.feed.Append(t.Context(), control.Entry{At: w.clock.now(), Kind: control.EraseKeys, Cause: control.CauseRequest, EAN: m.ean, Keys: []control.KeyID{april.ID}})
	if !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("a token that cannot forget: %v", err)
	}
	if _, err := w.feed.Beat(t.Context()); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("a heartbeat after it: %v", err)
	}
	if got := w.opened(q); len(got.Faults) == 0 || got.Faults[0].Reason != client.Erased {
		t.Errorf("meanwhile: %+v", got)
	}
	w.open.keep.Store(nil)
	w.open.forgot.Store(0)
	if _, err := w.feed.Beat(t.Context()); err != nil || w.open.forgot.Load() != 1 {
		t.Errorf("when it can again: %v, forgot %d times", err, w.open.forgot.Load())
	}
	if _, err := w.feed.Beat(t.Context()); err != nil || w.open.forgot.Load() != 1 {
		t.Errorf("after that: %v, forgot %d times", err, w.open.forgot.Load())
	}
}

// TestStatusOfHungToken: Status answers though a token does not.
func TestStatusOfHungToken(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	w := newWorld(t, func(_ *world, c *cryptoserver.Config) { c.Tokens.Open = hungReport{c.Tokens.Open, release} })
	defer close(release)
	for range 3 { // it does not matter how often
		start := time.Now()
		st := w.as("gateway").Status(t.Context())[0]
		if st.Err != nil || len(st.Tokens) != 5 || time.Since(start) > 5*time.Second {
			t.Fatalf("after %s: %+v", time.Since(start), st)
		}
		for _, tok := range st.Tokens {
			if (tok.State == "unknown") != (tok.Role == "open") || tok.State != "unknown" && tok.State != "up" {
				t.Errorf("%+v", tok)
			}
		}
	}
}

type hungReport struct {
	token.Opener
	release chan struct{}
}

func (h hungReport) Report() []token.Report {
	<-h.release
	return nil
}
