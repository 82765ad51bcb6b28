package custodian_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/envelope"
	"kluis/custodian"
	"kluis/internal/postgres"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

func TestMain(m *testing.M) { os.Exit(hsmtest.Main(inDatabase{m})) }

// inDatabase runs the tests with a cluster.
type inDatabase struct{ m *testing.M }

func (d inDatabase) Run() int { return pgtest.Run(d.m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func withCheckDigit(digits string) string {
	sum := 0
	for i := range digits {
		w := 1
		if (len(digits)-i)%2 == 1 {
			w = 3
		}
		sum += w * int(digits[i]-'0')
	}
	return fmt.Sprintf("%s%d", digits, (10-sum%10)%10)
}

func ean(n int) meter.EAN {
	return must(meter.ParseEAN(withCheckDigit(fmt.Sprintf("871685900%08d", n))))
}

func month(s string) meter.Month { return must(meter.ParseDay(s + "-01")).Month() }

// signer signs heads with a key made for the test.
type signer struct {
	key *ecdsa.PrivateKey
	id  authz.KeyID
}

func newSigner() signer {
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return signer{k, authz.KeyIDOf(&k.PublicKey)}
}

func (s signer) KeyID() authz.KeyID { return s.id }

func (s signer) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err == nil {
		r.FillBytes(sig[:32])
		v.FillBytes(sig[32:])
	}
	return sig, err
}

// pool is a pool of cryptoservers whose tokens are in memory: the feed, the
// signatures, the authenticated encryption and the refusals are those of real
// ones, so that a test can say whether a block opens. TestRealServers has real
// ones.
type pool struct {
	servers []*server
	keys    *authz.SealKeys
	turn    atomic.Int64
	mu      sync.Mutex
	kek     map[uint32][]byte
	mac     []byte
	often   func(envelope.KeyRecord) bool // what was sealed too often; nil: nothing
}

type server struct {
	pool   *pool
	name   string
	signer signer
	ahead  time.Duration // its clock

	mu      sync.Mutex
	feed    *control.Feed
	lacks   map[uint32]bool
	roles   []string
	gone    bool // refuses connections
	silent  bool // its tokens do not say what they have
	hangs   bool
	slow    time.Duration
	mute    bool // does what it is asked, and the answer is lost
	heads   int  // taken in
	biggest int  // entries in one call
}

func newPool(n int) *pool {
	p := &pool{kek: map[uint32][]byte{}, mac: make([]byte, 32)}
	rand.Read(p.mac)
	for e := range uint32(5) {
		p.kek[e+1] = make([]byte, 32)
		rand.Read(p.kek[e+1])
	}
	var pub []*ecdsa.PublicKey
	for i := range n {
		s := &server{pool: p, name: fmt.Sprintf("cs%d", i+1), signer: newSigner(), feed: control.NewFeed(), lacks: map[uint32]bool{}, roles: []string{"open", "seal", "mint", "rotate"}}
		p.servers = append(p.servers, s)
		pub = append(pub, &s.signer.key.PublicKey)
	}
	p.keys = must(authz.NewSealKeys(pub...))
	return p
}

var errGone = fmt.Errorf("%w: connection refused", custodian.ErrUnavailable)

// meet is what a call meets on its way; the error after it says that the
// answer is lost.
func (s *server) meet(ctx context.Context) (lost, err error) {
	s.mu.Lock()
	gone, hangs, slow, mute := s.gone, s.hangs, s.slow, s.mute
	s.mu.Unlock()
	switch {
	case gone:
		return nil, errGone
	case hangs:
		<-ctx.Done()
		return nil, ctx.Err()
	case slow > 0:
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(slow):
		}
	}
	if mute {
		return errGone, nil
	}
	return nil, ctx.Err()
}

func (s *server) set(f func(*server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// restart forgets the feed.
func (s *server) restart() { s.set(func(s *server) { s.feed = control.NewFeed() }) }

func (s *server) known() *control.Feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.feed
}

// any tries the servers in turn, as the client does.
func (p *pool) any(ctx context.Context, f func(*server) error) error {
	var last error
	turn := int(p.turn.Add(1))
	for i := range p.servers {
		s := p.servers[(turn+i)%len(p.servers)]
		lost, err := s.meet(ctx)
		if err == nil {
			err = errors.Join(f(s), lost)
		}
		if !errors.Is(err, custodian.ErrUnavailable) {
			return err
		}
		last = err
	}
	return last
}

func (p *pool) SignControl(ctx context.Context, head control.Head, entry []byte) (signed []byte, err error) {
	err = p.any(ctx, func(s *server) error {
		known := s.known().Head()
		if head.Sequence < known.Sequence || head.Sequence == known.Sequence && head.Hash != known.Hash {
			return custodian.ErrFork
		}
		h := head
		if entry != nil {
			h.Sequence, h.Hash = h.Sequence+1, h.Hash.Next(entry)
		}
		h.At = time.Now().Add(s.ahead)
		signed, err = h.Sign(s.signer)
		return err
	})
	return signed, err
}

func (p *pool) Addresses() []string {
	var out []string
	for _, s := range p.servers {
		out = append(out, s.name+":1")
	}
	return out
}

func (p *pool) at(address string) *server {
	return p.servers[slices.Index(p.Addresses(), address)]
}

func (p *pool) PutControl(ctx context.Context, address string, first uint64, entries [][]byte, head []byte) (uint64, error) {
	s := p.at(address)
	lost, err := s.meet(ctx)
	if err != nil {
		return 0, err
	}
	h, err := control.OpenHead(head, p.keys)
	if err != nil {
		return 0, err
	}
	feed := s.known()
	if h.Sequence < feed.Head().Sequence {
		return feed.Head().Sequence, lost
	}
	s.set(func(s *server) { s.biggest = max(s.biggest, len(entries)) })
	switch _, err = feed.Advance(h, first, entries); {
	case errors.Is(err, control.ErrFork):
		return 0, fmt.Errorf("%w: %w", custodian.ErrFork, err)
	case err == nil:
		s.set(func(s *server) { s.heads++ })
	case !errors.Is(err, control.ErrGap):
		return 0, err
	}
	return feed.Head().Sequence, lost
}

func (p *pool) Status(ctx context.Context) []custodian.ServerStatus {
	out := make([]custodian.ServerStatus, len(p.servers))
	for i, s := range p.servers {
		out[i].Address = p.Addresses()[i]
		if lost, err := s.meet(ctx); errors.Join(lost, err) != nil {
			out[i].Err = errors.Join(lost, err)
			continue
		}
		head := s.known().Head()
		out[i].ServerID, out[i].Healthy, out[i].Sequence, out[i].HeadAt, out[i].ActiveEpoch = s.name, true, head.Sequence, head.At, s.known().Active()
		out[i].Roles = s.roles
		for _, role := range s.roles {
			t := custodian.TokenStatus{Role: role, Label: s.name + "-" + role, State: "up"}
			for e := range p.kek {
				if !s.lacks[e] && !s.silent {
					t.Keys = append(t.Keys, custodian.KeyStatus{Label: fmt.Sprintf("kluis/kek/%d", e), Kind: "kek", Epoch: e})
				}
			}
			out[i].Tokens = append(out[i].Tokens, t)
		}
	}
	return out
}

func (p *pool) sum(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, b := range parts {
		h.Write(b)
	}
	return h.Sum(nil)
}

func (p *pool) wrap(epoch uint32, key []byte) []byte {
	out := slices.Clone(p.sum(p.kek[epoch], key)[:8])
	for i, m := range p.sum(p.kek[epoch], []byte("mask")) {
		out = append(out, key[i]^m)
	}
	return out
}

func (p *pool) unwrap(k *envelope.KeyRecord) ([]byte, bool) {
	p.mu.Lock()
	kek := p.kek[k.Epoch]
	p.mu.Unlock()
	if kek == nil || len(k.Wrapped) != envelope.WrappedKeySize {
		return nil, false
	}
	key := slices.Clone(k.Wrapped[8:])
	for i, m := range p.sum(kek, []byte("mask")) {
		key[i] ^= m
	}
	return key, bytes.Equal(p.sum(kek, key)[:8], k.Wrapped[:8])
}

func (p *pool) seal(k *envelope.KeyRecord, id envelope.BlockID, plain []byte) []byte {
	key, ok := p.unwrap(k)
	if !ok {
		panic("seal under a damaged key")
	}
	iv := make([]byte, envelope.IVSize)
	rand.Read(iv)
	id.KeyID = k.ID
	return envelope.AppendCiphertext(nil, envelope.Ciphertext{KeyID: k.ID, IV: iv, Body: gcm(key).Seal(nil, iv, plain, id.AppendAAD(nil))})
}

func (p *pool) open(k *envelope.KeyRecord, id envelope.BlockID, ciphertext []byte) ([]byte, bool) {
	key, ok := p.unwrap(k)
	ct, err := envelope.ParseCiphertext(ciphertext)
	if !ok || err != nil || ct.KeyID != k.ID {
		return nil, false
	}
	id.KeyID = k.ID
	plain, err := gcm(key).Open(nil, ct.IV, ct.Body, id.AppendAAD(nil))
	return plain, err == nil
}

func gcm(key []byte) cipher.AEAD { return must(cipher.NewGCM(must(aes.NewCipher(key)))) }

func (p *pool) record(s envelope.KeySpec, epoch uint32) envelope.KeyRecord {
	key := make([]byte, 32)
	rand.Read(key)
	k := envelope.KeyRecord{EAN: s.EAN, Class: s.Class, Month: s.Month, Occupancy: s.Occupancy, Epoch: epoch, Wrapped: p.wrap(epoch, key)}
	rand.Read(k.ID[:])
	k.MAC = [32]byte(p.sum(p.mac, k.Message()))
	return k
}

func (p *pool) genuine(k *envelope.KeyRecord) bool {
	return bytes.Equal(p.sum(p.mac, k.Message()), k.MAC[:])
}

func (p *pool) Mint(ctx context.Context, specs []envelope.KeySpec) (out []envelope.KeyRecord, err error) {
	err = p.any(ctx, func(s *server) error {
		out = nil
		for _, spec := range specs {
			out = append(out, p.record(spec, s.known().Active()))
		}
		return nil
	})
	return out, err
}

func (p *pool) Rewrap(ctx context.Context, keys []envelope.KeyRecord) (epoch uint32, out []custodian.RewrapResult, err error) {
	err = p.any(ctx, func(s *server) error {
		feed := s.known()
		out, epoch = make([]custodian.RewrapResult, len(keys)), feed.Active()
		for i, k := range keys {
			if k.EAN == (meter.EAN{}) {
				return errors.New("malformed")
			}
			key, ok := p.unwrap(&k)
			switch {
			case !ok || !p.genuine(&k):
				out[i].Err = custodian.ErrDamaged
			case feed.Erased(k.ID, k.Month):
				out[i].Err = custodian.ErrErased
			default:
				k.Epoch, k.Wrapped = epoch, p.wrap(epoch, key)
				k.MAC = [32]byte(p.sum(p.mac, k.Message()))
				out[i].Record = k
			}
		}
		return nil
	})
	return epoch, out, err
}

func (p *pool) Reseal(ctx context.Context, from, to envelope.KeyRecord, blocks []envelope.SealedBlock) (out []custodian.ResealResult, err error) {
	err = p.any(ctx, func(s *server) error {
		if s.known().Erased(from.ID, from.Month) {
			return custodian.ErrErased
		}
		if !p.genuine(&from) || !p.genuine(&to) {
			return custodian.ErrDamaged
		}
		if p.often != nil && p.often(from) {
			return custodian.ErrTooOften
		}
		out = make([]custodian.ResealResult, len(blocks))
		for i, b := range blocks {
			id := envelope.BlockID{EAN: from.EAN, Field: b.Field, Day: b.Day, Resolution: b.Resolution, Version: b.Version}
			if plain, ok := p.open(&from, id, b.Ciphertext); ok {
				out[i].Ciphertext = p.seal(&to, id, plain)
			} else {
				out[i].Err = custodian.ErrDamaged
			}
		}
		return nil
	})
	return out, err
}

// faulty stands between the custodian and everything it calls, and makes one
// call fail: before it was done, or after.
type faulty struct {
	custodian.Store
	custodian.Cryptoservers
	mu    sync.Mutex
	calls int
	at    int // which call; 0: none
	after bool
	err   error
	hit   func()
	read  func(envelope.KeyRecord) // after the blocks under a key were read
}

func (f *faulty) on(do func() error) error {
	f.mu.Lock()
	f.calls++
	mine, err, hit := f.calls == f.at, f.err, f.hit
	f.mu.Unlock()
	if !mine {
		return do()
	}
	if f.after {
		if err := do(); err != nil {
			return err
		}
	}
	if hit != nil {
		hit()
	}
	return err
}

type faultyStore struct{ *faulty }
type faultyServers struct{ *faulty }

func (f faultyStore) Feed(ctx context.Context, after uint64, limit int) (out []custodian.Appended, err error) {
	err = f.on(func() (err error) { out, err = f.Store.Feed(ctx, after, limit); return err })
	return out, err
}

func (f faultyStore) Append(ctx context.Context, a custodian.Appended) error {
	return f.on(func() error { return f.Store.Append(ctx, a) })
}

func (f faultyStore) Heartbeat(ctx context.Context, head []byte) error {
	return f.on(func() error { return f.Store.Heartbeat(ctx, head) })
}

func (f faultyStore) LastHeartbeat(ctx context.Context) (b []byte, err error) {
	err = f.on(func() (err error) { b, err = f.Store.LastHeartbeat(ctx); return err })
	return b, err
}

func (f faultyStore) Scan(ctx context.Context, s custodian.KeySelection, after custodian.Place, limit int) (keys []envelope.KeyRecord, next *custodian.Place, err error) {
	err = f.on(func() (err error) { keys, next, err = f.Store.Scan(ctx, s, after, 4); return err }) // small pages
	return keys, next, err
}

func (f faultyStore) ReplaceWrapped(ctx context.Context, old, new []envelope.KeyRecord) (n int, err error) {
	err = f.on(func() (err error) { n, err = f.Store.ReplaceWrapped(ctx, old, new); return err })
	return n, err
}

func (f faultyStore) DeleteKeys(ctx context.Context, keys []custodian.KeyRef, sequence uint64) (n int, err error) {
	err = f.on(func() (err error) { n, err = f.Store.DeleteKeys(ctx, keys, sequence); return err })
	return n, err
}

func (f faultyStore) BlocksUnder(ctx context.Context, k envelope.KeyRecord) (b []envelope.SealedBlock, err error) {
	err = f.on(func() (err error) { b, err = f.Store.BlocksUnder(ctx, k); return err })
	if f.read != nil {
		f.read(k)
	}
	return b, err
}

func (f faultyStore) ReplaceDataKey(ctx context.Context, old, new envelope.KeyRecord, blocks []envelope.SealedBlock) error {
	return f.on(func() error { return f.Store.ReplaceDataKey(ctx, old, new, blocks) })
}

func (f faultyStore) Retired(ctx context.Context, of meter.EAN, atLeast time.Duration, limit int) (out []custodian.KeyRef, err error) {
	err = f.on(func() (err error) { out, err = f.Store.Retired(ctx, of, atLeast, limit); return err })
	return out, err
}

func (f faultyStore) CountKeys(ctx context.Context) (out map[uint32]custodian.KeyCount, err error) {
	err = f.on(func() (err error) { out, err = f.Store.CountKeys(ctx); return err })
	return out, err
}

func (f faultyServers) SignControl(ctx context.Context, head control.Head, entry []byte) (b []byte, err error) {
	err = f.on(func() (err error) { b, err = f.Cryptoservers.SignControl(ctx, head, entry); return err })
	return b, err
}

func (f faultyServers) PutControl(ctx context.Context, address string, first uint64, entries [][]byte, head []byte) (n uint64, err error) {
	err = f.on(func() (err error) {
		n, err = f.Cryptoservers.PutControl(ctx, address, first, entries, head)
		return err
	})
	return n, err
}

func (f faultyServers) Mint(ctx context.Context, specs []envelope.KeySpec) (out []envelope.KeyRecord, err error) {
	err = f.on(func() (err error) { out, err = f.Cryptoservers.Mint(ctx, specs); return err })
	return out, err
}

func (f faultyServers) Rewrap(ctx context.Context, keys []envelope.KeyRecord) (epoch uint32, out []custodian.RewrapResult, err error) {
	err = f.on(func() (err error) { epoch, out, err = f.Cryptoservers.Rewrap(ctx, keys); return err })
	return epoch, out, err
}

func (f faultyServers) Reseal(ctx context.Context, from, to envelope.KeyRecord, blocks []envelope.SealedBlock) (out []custodian.ResealResult, err error) {
	err = f.on(func() (err error) { out, err = f.Cryptoservers.Reseal(ctx, from, to, blocks); return err })
	return out, err
}

// world is a database, a pool, and a custodian between them.
type world struct {
	t      testing.TB
	db     *pgtest.DB
	owner  *sql.DB
	store  backend.CustodianStore
	ingest *postgres.Ingest
	pool   *pool
	faulty *faulty
	copy   string
	log    *logBuffer
	*custodian.Custodian

	plain map[blockKey]string // what must open

	markers int // metering points of looked
}

type blockKey struct {
	ean     int64
	field   meter.FieldCode
	day     meter.Day
	version uint32
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte(s))
}

const callTime = 4 * time.Second

func newWorld(t testing.TB, servers int) *world {
	t.Helper()
	w := &world{t: t, db: pgtest.New(t), pool: newPool(servers), log: &logBuffer{}, plain: map[blockKey]string{}}
	w.owner = w.db.Open(t, migrations.RoleOwner)
	store, err := postgres.NewCustodian(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleCustodian)})
	w.must(err)
	t.Cleanup(func() { store.Close() })
	w.store = backend.CustodianStore{DB: store}
	w.ingest, err = postgres.NewIngest(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleIngest)})
	w.must(err)
	t.Cleanup(func() { w.ingest.Close() })
	w.faulty = &faulty{Store: w.store, Cryptoservers: w.pool}
	w.copy = filepath.Join(t.TempDir(), "feed")
	w.Custodian = w.another(w.copy)
	return w
}

// another is a custodian more.
func (w *world) another(copyFile string) *custodian.Custodian {
	w.t.Helper()
	c, err := custodian.New(faultyStore{w.faulty}, faultyServers{w.faulty}, w.pool.keys, copyFile, slog.New(slog.NewJSONHandler(w.log, nil)), time.Now)
	w.must(err)
	c.Hurry(callTime)
	w.t.Cleanup(func() { c.Close() })
	return c
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	_, err := w.owner.ExecContext(context.Background(), query, args...)
	w.must(err)
}

func (w *world) value(query string, args ...any) string {
	w.t.Helper()
	var s sql.NullString
	w.must(w.owner.QueryRowContext(context.Background(), query, args...).Scan(&s))
	return s.String
}

func (w *world) activate(epoch uint32) {
	w.t.Helper()
	acks, err := w.Activate(w.t.Context(), epoch)
	w.must(err)
	for _, a := range acks {
		w.must(a.Err)
	}
}

var testMonths = []meter.Month{month("2025-01"), month("2025-02")}

// fill stores readings of metering points under keys of an epoch: two months,
// two classes, two days each, some corrected.
func (w *world) fill(epoch uint32, points ...int) {
	w.t.Helper()
	for _, n := range points {
		var b postgres.Batch
		for _, m := range testMonths {
			for _, class := range []meter.Class{meter.Registers, meter.Intervals} {
				k := w.pool.record(envelope.KeySpec{EAN: ean(n), Class: class, Month: m, Occupancy: 19000}, epoch)
				b.Keys = append(b.Keys, k)
				for d := range meter.Day(2) {
					for v := range uint32(1 + d) {
						b.Blocks = append(b.Blocks, w.block(&k, m.First()+d*7, v+1))
					}
				}
			}
		}
		w.must(w.ingest.Commit(context.Background(), b))
	}
}

// block seals a block and remembers what it holds.
func (w *world) block(k *envelope.KeyRecord, d meter.Day, version uint32) postgres.Row {
	f := meter.FieldCode(1)
	r := meter.P1D
	if k.Class == meter.Intervals {
		f, r = 6, meter.PT15M
	}
	id := envelope.BlockID{EAN: k.EAN, Field: f, Day: d, Resolution: r, Version: version}
	plain := fmt.Sprintf("%s %d %s %d", k.EAN, f, d, version)
	w.plain[blockKey{k.EAN.Int64(), f, d, version}] = plain
	return postgres.Row{
		EAN: k.EAN, Field: f, Day: d, Version: version, Resolution: r, KeyID: k.ID, ValueCount: 1,
		ContentMAC: [32]byte(w.pool.sum(w.pool.mac, []byte(plain))), Ciphertext: w.pool.seal(k, id, []byte(plain)),
	}
}

// keys reads the data keys as they are.
func (w *world) keyRows() map[control.KeyID]envelope.KeyRecord {
	w.t.Helper()
	out := map[control.KeyID]envelope.KeyRecord{}
	after := custodian.Place{}
	for {
		keys, next, err := w.store.Scan(context.Background(), custodian.KeySelection{}, after, 1000)
		w.must(err)
		for _, k := range keys {
			out[k.ID] = k
		}
		if next == nil {
			return out
		}
		after = *next
	}
}

// check looks at every block: those of which erased says so have no key and
// tell nothing, the others open, with what was sealed.
func (w *world) check(erased func(of meter.EAN, m meter.Month) bool) {
	w.t.Helper()
	keys := w.keyRows()
	for id, k := range keys {
		if !w.pool.genuine(&k) && len(k.Wrapped) == envelope.WrappedKeySize {
			w.t.Errorf("key %x has a record that was not minted", id[:4])
		}
	}
	rows, err := w.owner.QueryContext(context.Background(), `SELECT ean, field, day - DATE '1970-01-01', version, resolution, uuid_send(key_id), content_mac, ciphertext FROM sealed_block`)
	w.must(err)
	defer rows.Close()
	seen := 0
	for rows.Next() {
		var number, field, day, version, resolution int64
		var id, mac, ciphertext []byte
		w.must(rows.Scan(&number, &field, &day, &version, &resolution, &id, &mac, &ciphertext))
		seen++
		of := must(meter.EANFromInt64(number))
		at := fmt.Sprintf("field %d day %s version %d of %s", field, meter.Day(day), version, of)
		blank := bytes.Equal(mac, make([]byte, 32))
		k, there := keys[control.KeyID(id)]
		if erased(of, meter.Day(day).Month()) {
			if there || !blank {
				w.t.Errorf("%s: was erased, and has a key (%v) or a content MAC (%v)", at, there, !blank)
			}
			if got := w.value(`SELECT count(*) FROM key_tombstone WHERE ean = $1 AND key_id = encode($2, 'hex')::uuid AND sequence IS NOT NULL`, number, id); got != "1" {
				w.t.Errorf("%s: %s tombstones", at, got)
			}
			continue
		}
		want := w.plain[blockKey{number, meter.FieldCode(field), meter.Day(day), uint32(version)}]
		plain, ok := w.pool.open(&k, envelope.BlockID{EAN: of, Field: meter.FieldCode(field), Day: meter.Day(day), Resolution: meter.Resolution(resolution), Version: uint32(version)}, ciphertext)
		if !there || !ok || string(plain) != want {
			w.t.Errorf("%s: key there %v, opens %v: %q, want %q", at, there, ok, plain, want)
		}
		if blank || !bytes.Equal(mac, w.pool.sum(w.pool.mac, plain)) {
			w.t.Errorf("%s: its content MAC is not that of its content", at)
		}
		for _, s := range w.pool.servers {
			if s.known().Erased(k.ID, k.Month) {
				w.t.Errorf("%s: %s holds its key for erased", at, s.name)
			}
		}
	}
	w.must(rows.Err())
	if seen != len(w.plain) {
		w.t.Errorf("%d blocks, want %d", seen, len(w.plain))
	}
}

func nothing(meter.EAN, meter.Month) bool { return false }

// epochs counts the data keys by epoch.
func (w *world) epochs() map[uint32]int {
	out := map[uint32]int{}
	for _, k := range w.keyRows() {
		out[k.Epoch]++
	}
	return out
}

// empty deletes the rows of a table. TRUNCATE makes new files, of which
// sealed_block has some for each of its months: that takes far longer.
func (w *world) empty(table string) {
	w.t.Helper()
	w.exec(`DELETE FROM public.` + table)
}

// reset empties the database and starts over with new servers and a new copy.
func (w *world) reset() {
	w.t.Helper()
	for _, table := range backupTables {
		w.empty(table)
	}
	w.pool.turn.Store(0)
	for _, s := range w.pool.servers {
		s.restart()
	}
	w.plain = map[blockKey]string{}
	w.faulty.mu.Lock()
	w.faulty.calls, w.faulty.at = 0, 0
	w.faulty.mu.Unlock()
	w.copy = filepath.Join(w.t.TempDir(), "feed")
	w.Custodian = w.another(w.copy)
}

// arm makes the n-th call from now on fail.
func (f *faulty) arm(n int, after bool, err error, hit func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.at, f.after, f.err, f.hit = 0, n, after, err, hit
}

func (f *faulty) disarm() (struck bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	struck = f.at > 0 && f.calls >= f.at
	f.at = 0
	return struck
}
