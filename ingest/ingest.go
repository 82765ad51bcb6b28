// Package ingest is the one way in for readings: it takes foreign files apart
// by a mapping, makes blocks of local days of them, and has these sealed and
// stored.
//
// It can mint data keys and seal, never open. What is stored already is
// recognised by the HSM's content MAC: equal content changes nothing, other
// content becomes a new version of the block, and nothing is overwritten.
//
// A block replaces a whole day. A day that would end up with fewer values
// than are stored is refused unless the caller says so.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

var (
	// ErrConflict is what Store.Commit returns when another writer stored a
	// version or a data key that the batch holds too. Days then starts over.
	ErrConflict = errors.New("someone else wrote the same blocks")
	// ErrUnknownMeteringPoint says that a metering point has no legal file.
	ErrUnknownMeteringPoint = errors.New("metering point not registered: register it first with kluis supply set --commodity")
	// ErrCommodity says that the fields are not those of the metering point.
	ErrCommodity = errors.New("commodity mismatch")
	// ErrFewer is wrapped by FewerError.
	ErrFewer = errors.New("fewer values than stored")
)

// Sealer makes data keys and seals blocks inside the HSM. Results are as
// asked, in order; an error means that none is usable.
type Sealer interface {
	Mint(ctx context.Context, specs []envelope.KeySpec) ([]envelope.KeyRecord, error)
	Seal(ctx context.Context, ean meter.EAN, keys []envelope.KeyRecord, blocks []envelope.PlainBlock) ([]envelope.SealedContent, error)
}

// Store is what ingest needs of the database. It never reads a ciphertext.
type Store interface {
	// LegalFiles returns the newest legal file of each metering point, and the
	// one before, as asked, in order; an empty one where there is none.
	LegalFiles(ctx context.Context, eans []meter.EAN) ([]authz.StoredFile, error)
	// Heads returns the highest version of each block stored of the metering
	// points, fields and days, in any order.
	Heads(ctx context.Context, eans []meter.EAN, fields []meter.FieldCode, days meter.DayRange) ([]Head, error)
	// Keys returns the data keys of the metering points, of the months from
	// first to last, both included.
	Keys(ctx context.Context, eans []meter.EAN, first, last meter.Month) ([]envelope.KeyRecord, error)
	// Commit stores all or nothing, in one transaction. ErrConflict when a
	// key for the same class, month and occupancy, or a block of the same
	// field, day and version, is already there.
	Commit(ctx context.Context, b Batch) error
}

// Head is what the database shows of the newest version of a block.
type Head struct {
	EAN        meter.EAN
	Field      meter.FieldCode
	Day        meter.Day
	Version    uint32
	ValueCount int
	ContentMAC [32]byte
}

// Batch is what one call of Days stores.
type Batch struct {
	Keys   []envelope.KeyRecord
	Blocks []Row
}

// Row is a sealed block to be stored.
type Row struct {
	EAN        meter.EAN
	Field      meter.FieldCode
	Day        meter.Day
	Version    uint32
	Resolution meter.Resolution
	KeyID      [16]byte
	ValueCount int
	ContentMAC [32]byte
	Ciphertext []byte
}

// Ingester stores blocks. Safe for concurrent use.
type Ingester struct {
	profile *meter.Profile
	keys    *authz.SealKeys
	sealer  Sealer
	store   Store
}

// New makes an Ingester. Legal files are believed only when they verify under
// keys.
func New(p *meter.Profile, keys *authz.SealKeys, sealer Sealer, store Store) *Ingester {
	return &Ingester{profile: p, keys: keys, sealer: sealer, store: store}
}

// Point is a metering point and new blocks of it: each field and day at most
// once.
type Point struct {
	EAN    meter.EAN
	Blocks []FieldBlock
}

// FieldBlock is the block of one field for one local day.
type FieldBlock struct {
	Field meter.FieldCode
	Block meter.Block
}

// Options of Days.
type Options struct {
	// Replace stores days although they have fewer values than are stored.
	Replace bool
	// Progress, when set, is told how many blocks are sealed of how many. It
	// is called from one goroutine at a time.
	Progress func(done, total int)
	// AtOnce is how many metering points Many stores together; 0: 500.
	AtOnce int
}

// Counts says what became of the blocks of one field.
type Counts struct {
	Field     string `json:"field"`
	EAN       string `json:"ean"`
	Days      int    `json:"days"`      // blocks offered
	Values    int    `json:"values"`    // values in them that are not null
	Stored    int    `json:"stored"`    // blocks of days that had none
	Corrected int    `json:"corrected"` // blocks that became a new version
	Unchanged int    `json:"unchanged"` // equal to what is stored
	Empty     int    `json:"empty"`     // without any value, and none stored: not kept
}

// Fewer is a stored block with more values than the new one.
type Fewer struct {
	EAN    meter.EAN
	Field  string
	Day    meter.Day
	Stored int // values
	New    int
}

// FewerError lists the days that were refused. Nothing was stored.
type FewerError struct{ Days []Fewer }

func (e *FewerError) Error() string {
	d := e.Days[0]
	s := fmt.Sprintf("%v: %s on %s has %d, stored are %d", ErrFewer, d.Field, d.Day, d.New, d.Stored)
	if n := len(e.Days) - 1; n > 0 {
		s += fmt.Sprintf(", and %d more days like it", n)
	}
	return s + "; nothing was stored: complete the file, or say --replace if the stored values are wrong"
}

func (e *FewerError) Unwrap() error { return ErrFewer }

const (
	// sealBatch bounds the blocks of one Seal call: about 300 kB.
	sealBatch = 384
	// mintBatch bounds the keys of one Mint call.
	mintBatch = 1000
	// sealParallel bounds the Seal calls under way.
	sealParallel = 4
	// commitTries is how often Days starts over when another writer was
	// faster.
	commitTries = 5
)

// Days seals and stores blocks, all or nothing: the batch is committed in one
// transaction after everything was sealed. Counts come in the order of points
// and, within one, of the profile's catalogue.
//
// Errors wrap ErrUnknownMeteringPoint, ErrCommodity, ErrFewer (a FewerError),
// ErrConflict when other writers kept interfering, authz.ErrSeal when a legal
// file does not verify, or come from Sealer and Store.
func (g *Ingester) Days(ctx context.Context, points []Point, opt Options) ([]Counts, error) {
	for try := 1; ; try++ {
		counts, err := g.days(ctx, points, opt)
		if try == commitTries || !errors.Is(err, ErrConflict) {
			return counts, err
		}
	}
}

func (g *Ingester) days(ctx context.Context, points []Point, opt Options) ([]Counts, error) {
	works, err := g.plan(ctx, points)
	if err != nil {
		return nil, err
	}
	var fewer []Fewer
	for _, w := range works {
		fewer = append(fewer, w.fewer...)
	}
	if len(fewer) > 0 && !opt.Replace {
		return nil, &FewerError{fewer}
	}
	if err := g.seal(ctx, works, opt.Progress); err != nil {
		return nil, err
	}
	var batch Batch
	var counts []Counts
	for _, w := range works {
		w.addTo(&batch)
		counts = append(counts, w.counts...)
	}
	if len(batch.Blocks) == 0 {
		return counts, nil // keys minted for nothing are not stored
	}
	return counts, g.store.Commit(ctx, batch)
}

// work is what there is to do for one metering point.
type work struct {
	ean    meter.EAN
	keys   []envelope.KeyRecord // stored ones, then those minted
	stored int                  // how many of keys are stored
	mint   []envelope.KeySpec
	blocks []envelope.PlainBlock    // sorted by day; Key is an index into keys
	sealed []envelope.SealedContent // one per block
	heads  map[fieldDay]Head
	fewer  []Fewer
	counts []Counts
	index  map[meter.FieldCode]int // of counts
}

type fieldDay struct {
	field meter.FieldCode
	day   meter.Day
}

// plan checks the blocks against their metering points and what is stored of
// these, and finds or mints their keys.
func (g *Ingester) plan(ctx context.Context, points []Point) ([]*work, error) {
	eans := make([]meter.EAN, len(points))
	at := make(map[meter.EAN]int, len(points))
	for i, p := range points {
		eans[i] = p.EAN
		if _, twice := at[p.EAN]; twice {
			return nil, errors.New("a metering point is given twice")
		}
		at[p.EAN] = i
	}
	newest, err := g.store.LegalFiles(ctx, eans)
	if err != nil {
		return nil, err
	}
	if len(newest) != len(points) {
		return nil, errors.New("the database answered with another number of legal files")
	}
	works := make([]*work, len(points))
	files := make([]*authz.LegalFile, len(points))
	days := meter.DayRange{From: meter.MaxDay}
	var fields []meter.FieldCode // of all of them
	for i, p := range points {
		if files[i], err = g.keys.StoredFile(newest[i], p.EAN); err != nil {
			return nil, fmt.Errorf("legal file of the metering point: %w", err)
		}
		if files[i] == nil {
			return nil, ErrUnknownMeteringPoint
		}
		if works[i], err = g.check(p, files[i].Commodity(), &days); err != nil {
			return nil, err
		}
		for f := range works[i].index {
			if !slices.Contains(fields, f) {
				fields = append(fields, f)
			}
		}
	}
	if days.Empty() {
		return works, nil
	}
	heads, err := g.store.Heads(ctx, eans, fields, days)
	if err != nil {
		return nil, err
	}
	for _, h := range heads {
		if i, ok := at[h.EAN]; ok {
			works[i].heads[fieldDay{h.Field, h.Day}] = h
		}
	}
	stored, err := g.store.Keys(ctx, eans, days.From.Month(), (days.To - 1).Month())
	if err != nil {
		return nil, err
	}
	for _, k := range stored {
		if i, ok := at[k.EAN]; ok {
			works[i].keys = append(works[i].keys, k)
		}
	}
	for i, w := range works {
		g.assign(w, files[i], points[i].Blocks)
	}
	return works, nil
}

// check says whether the blocks can be a metering point's, and widens days to
// hold theirs.
func (g *Ingester) check(p Point, commodity meter.Commodity, days *meter.DayRange) (*work, error) {
	w := &work{ean: p.EAN, index: map[meter.FieldCode]int{}, heads: map[fieldDay]Head{}}
	seen := make(map[fieldDay]bool, len(p.Blocks))
	for i := range p.Blocks {
		b := &p.Blocks[i]
		f, ok := g.profile.FieldByCode(b.Field)
		if !ok {
			return nil, fmt.Errorf("field %d is not in the market's catalogue", b.Field)
		}
		if f.Commodity != commodity {
			return nil, fmt.Errorf("%w: the metering point is registered for %s, %s is a field of %s: name the right metering point",
				ErrCommodity, commodity, f.Name, f.Commodity)
		}
		if !slices.Contains(f.Stored, b.Block.Resolution) {
			return nil, fmt.Errorf("%s cannot be stored at %s", f.Name, b.Block.Resolution)
		}
		at := fieldDay{b.Field, b.Block.Day}
		if seen[at] {
			return nil, fmt.Errorf("%s on %s is given twice", f.Name, b.Block.Day)
		}
		seen[at] = true
		days.From = min(days.From, b.Block.Day)
		days.To = max(days.To, b.Block.Day+1)
	}
	for _, f := range g.profile.Fields(commodity) {
		if slices.ContainsFunc(p.Blocks, func(b FieldBlock) bool { return b.Field == f.Code }) {
			w.index[f.Code] = len(w.counts)
			w.counts = append(w.counts, Counts{Field: f.Name, EAN: p.EAN.String()})
		}
	}
	return w, nil
}

// assign fills w with the blocks that matter and says which key each is to be
// sealed under: a stored one, or one to be minted.
func (g *Ingester) assign(w *work, file *authz.LegalFile, blocks []FieldBlock) {
	w.stored = len(w.keys)
	at := make(map[envelope.KeySpec]int, w.stored)
	for i, k := range w.keys {
		at[envelope.KeySpec{EAN: k.EAN, Class: k.Class, Month: k.Month, Occupancy: k.Occupancy}] = i
	}
	sorted := make([]*FieldBlock, len(blocks))
	for i := range blocks {
		sorted[i] = &blocks[i]
	}
	slices.SortStableFunc(sorted, func(a, b *FieldBlock) int { return int(a.Block.Day) - int(b.Block.Day) })
	for _, b := range sorted {
		f, _ := g.profile.FieldByCode(b.Field)
		c := &w.counts[w.index[b.Field]]
		n := countValues(b.Block.Values)
		c.Days++
		c.Values += n
		head, have := w.heads[fieldDay{b.Field, b.Block.Day}]
		if !have && n == 0 && b.Block.Start == meter.Null {
			c.Empty++
			continue
		}
		if have && n < head.ValueCount {
			w.fewer = append(w.fewer, Fewer{EAN: w.ean, Field: f.Name, Day: b.Block.Day, Stored: head.ValueCount, New: n})
		}
		spec := envelope.KeySpec{EAN: w.ean, Class: f.Class, Month: b.Block.Day.Month()}
		if o, ok := file.OccupancyAt(b.Block.Day); ok {
			spec.Occupancy = o.Days.From
		}
		key, ok := at[spec]
		if !ok {
			key = w.stored + len(w.mint)
			at[spec] = key
			w.mint = append(w.mint, spec)
		}
		w.blocks = append(w.blocks, envelope.PlainBlock{Field: b.Field, Version: head.Version + 1, Key: key, Block: b.Block})
	}
	w.sealed = make([]envelope.SealedContent, len(w.blocks))
}

// seal mints what is missing and seals all blocks, several batches at a time:
// a pool of cryptoservers shares them.
func (g *Ingester) seal(ctx context.Context, works []*work, progress func(done, total int)) error {
	total, done := 0, 0
	for _, w := range works {
		total += len(w.blocks)
		w.keys = w.keys[:w.stored:w.stored]
	}
	if err := g.mint(ctx, works); err != nil {
		return err
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(sealParallel)
	for _, w := range works {
		for from := 0; from < len(w.blocks); from += sealBatch {
			to := min(from+sealBatch, len(w.blocks))
			group.Go(func() error {
				if err := g.sealSome(ctx, w, from, to); err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				done += to - from
				if progress != nil {
					progress(done, total)
				}
				return nil
			})
		}
	}
	return group.Wait()
}

// mint makes the data keys that are missing, of as many metering points at a
// time as a call takes.
func (g *Ingester) mint(ctx context.Context, works []*work) error {
	var specs []envelope.KeySpec
	var of []*work // of each spec
	for _, w := range works {
		for _, s := range w.mint {
			specs, of = append(specs, s), append(of, w)
		}
	}
	for len(specs) > 0 {
		n := min(mintBatch, len(specs))
		minted, err := g.sealer.Mint(ctx, specs[:n])
		if err != nil {
			return fmt.Errorf("making data keys: %w", err)
		}
		if len(minted) != n {
			return fmt.Errorf("the cryptoserver made %d data keys instead of %d", len(minted), n)
		}
		for i, k := range minted {
			of[i].keys = append(of[i].keys, k)
		}
		specs, of = specs[n:], of[n:]
	}
	return nil
}

// sealSome seals blocks from <= i < to; only the keys they need travel along.
func (g *Ingester) sealSome(ctx context.Context, w *work, from, to int) error {
	var keys []envelope.KeyRecord
	local := map[int]int{}
	blocks := slices.Clone(w.blocks[from:to])
	for i := range blocks {
		k, ok := local[blocks[i].Key]
		if !ok {
			k = len(keys)
			local[blocks[i].Key] = k
			keys = append(keys, w.keys[blocks[i].Key])
		}
		blocks[i].Key = k
	}
	contents, err := g.sealer.Seal(ctx, w.ean, keys, blocks)
	if err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	if len(contents) != len(blocks) {
		return fmt.Errorf("the cryptoserver sealed %d blocks instead of %d", len(contents), len(blocks))
	}
	copy(w.sealed[from:to], contents)
	return nil
}

// addTo adds what differs from what is stored, with the new keys it uses.
func (w *work) addTo(batch *Batch) {
	used := map[int]bool{}
	for i, b := range w.blocks {
		c := &w.counts[w.index[b.Field]]
		head, have := w.heads[fieldDay{b.Field, b.Block.Day}]
		switch {
		case have && head.ContentMAC == w.sealed[i].ContentMAC:
			c.Unchanged++
			continue
		case have:
			c.Corrected++
		default:
			c.Stored++
		}
		key := w.keys[b.Key]
		if b.Key >= w.stored && !used[b.Key] {
			used[b.Key] = true
			batch.Keys = append(batch.Keys, key)
		}
		batch.Blocks = append(batch.Blocks, Row{
			EAN: w.ean, Field: b.Field, Day: b.Block.Day, Version: b.Version, Resolution: b.Block.Resolution,
			KeyID: key.ID, ValueCount: countValues(b.Block.Values),
			ContentMAC: w.sealed[i].ContentMAC, Ciphertext: w.sealed[i].Ciphertext,
		})
	}
}

func countValues(v []meter.Value) int {
	n := 0
	for _, x := range v {
		if x != meter.Null {
			n++
		}
	}
	return n
}
