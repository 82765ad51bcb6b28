package auditlog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
	"kluis/cryptoserver/checkpoint"
	"kluis/cryptoserver/envelope"
)

// Timing of the daemon; zero fields have the defaults. A leaf is at most
// Pull + Look + Sign late when everything serves: 8 seconds.
type Timing struct {
	Look   time.Duration // between looks for new rows; 1 s
	Pull   time.Duration // between looks at each server's journal; 2 s
	Sign   time.Duration // between checkpoints, while leaves come; 5 s
	Settle time.Duration // after which a sealed block should be stored; 10 min
	Call   time.Duration // bounds each call; 10 s
	Judge  time.Duration // between looks for what is unusual, while records come; 30 s
	Check  time.Duration // between checks of what is new in the log; 5 min
}

func (t *Timing) defaults() {
	for p, d := range map[*time.Duration]time.Duration{
		&t.Look: time.Second, &t.Pull: 2 * time.Second, &t.Sign: 5 * time.Second, &t.Settle: 10 * time.Minute, &t.Call: 10 * time.Second,
		&t.Judge: 30 * time.Second, &t.Check: 5 * time.Minute,
	} {
		if *p <= 0 {
			*p = d
		}
	}
}

const (
	pageRows   = 500 // rows looked at in one statement
	pageEvents = 100 // journal entries looked at for their blocks
)

// Auditor keeps the log.
type Auditor struct {
	store   Store
	servers Servers
	export  *Export
	log     Log
	slog    *slog.Logger
	timing  Timing
	rules   oversight.Rules
	metrics *metrics
	ready   chan struct{}
	once    sync.Once

	// The appender's, which is one goroutine.
	loaded   bool
	tree     frontier
	signed   checkpoint.Checkpoint // the newest known
	exported int64                 // size of the newest exported
	signedAt time.Time
	unstored []byte    // the newest, when it may not be in the database
	counted  time.Time // when what is not logged was

	unjudged unjudged
}

// New makes an auditor.
func New(store Store, servers Servers, export *Export, l Log, log *slog.Logger, rules oversight.Rules, t Timing) (*Auditor, error) {
	t.defaults()
	if err := rules.Check(); err != nil {
		return nil, err
	}
	return &Auditor{store: store, servers: servers, export: export, log: l, slog: log, timing: t, rules: rules,
		metrics: newMetrics(servers.Addresses()), ready: make(chan struct{})}, nil
}

// Ready is closed once the log in the database was looked at. When it is not the
// one that was signed the daemon is there all the same, and says so.
func (a *Auditor) Ready() <-chan struct{} { return a.ready }

// Run is the daemon; it returns nil when ctx ends. What fails is said once in
// the log and tried again; a server that is away or hangs delays no other, and
// without any of them what the database has is logged, and signed later.
func (a *Auditor) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, address := range a.servers.Addresses() {
		t := &trouble{log: a.slog.With("address", address), what: "the journal of a cryptoserver"}
		told := map[[16]byte]time.Time{}
		wg.Go(func() {
			for ctx.Err() == nil {
				err := a.pull(ctx, address, told)
				a.metrics.tellPulled(ctx, address, err)
				t.is(ctx, err)
				sleep(ctx, a.timing.Pull)
			}
		})
	}
	wg.Go(func() { a.oversee(ctx) })
	wg.Go(func() { a.checking(ctx) })
	look := &trouble{log: a.slog, what: "the audit log"}
	sign := &trouble{log: a.slog, what: "checkpoints"}
	keep := &trouble{log: a.slog, what: "exported checkpoints"}
	seals := &trouble{log: a.slog, what: "sealed blocks"}
	for ctx.Err() == nil {
		err := a.look(ctx)
		look.is(ctx, err)
		a.tell(ctx, err)
		if err == nil || errors.Is(err, ErrRolledBack) {
			a.once.Do(func() { close(a.ready) })
		}
		if err == nil {
			sign.is(ctx, a.sign(ctx))
			keep.is(ctx, a.exportPending(ctx))
			seals.is(ctx, a.settle(ctx))
			a.tellSigned()
		}
		sleep(ctx, a.timing.Look)
	}
	return nil
}

func (a *Auditor) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, a.timing.Call)
	defer cancel()
	return f(ctx)
}

// tellEvery is how often a server is told that all of an ended journal is
// stored, so that it may remove it.
const tellEvery = time.Hour

// pull fetches what is new of every journal of one server. told says when it was
// told that it may remove which.
func (a *Auditor) pull(ctx context.Context, address string, told map[[16]byte]time.Time) error {
	var boots []Boot
	err := a.call(ctx, func(ctx context.Context) (err error) {
		boots, _, err = a.servers.ReadJournal(ctx, address, [16]byte{}, 0)
		return err
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range boots {
		if err := a.pullBoot(ctx, address, b); err != nil {
			errs = append(errs, err)
			continue
		}
		if b.Ended && b.Last > 0 && time.Since(told[b.BootID]) > tellEvery {
			err := a.call(ctx, func(ctx context.Context) error {
				_, _, err := a.servers.ReadJournal(ctx, address, b.BootID, b.Last)
				return err
			})
			if err != nil {
				errs = append(errs, err)
				continue
			}
			told[b.BootID] = time.Now()
		}
	}
	return errors.Join(errs...)
}

// pullBoot fetches what is new of a journal. What does not follow on what was
// fetched before is stored as well, and found by Verify: nothing is gained by
// keeping it out.
func (a *Auditor) pullBoot(ctx context.Context, address string, b Boot) error {
	var after uint64
	var last []byte
	var ends [][]byte
	err := a.call(ctx, func(ctx context.Context) (err error) {
		if after, last, err = a.store.LastEntry(ctx, b.BootID); err != nil || !b.Ended || after != b.Last {
			return err
		}
		ends, err = a.store.Ends(ctx, b.BootID)
		return err
	})
	if err != nil {
		return err
	}
	if after > b.Last {
		return fmt.Errorf("journal of boot %x ends at %d, but %d entries were fetched of it before: %w: it was cut off", b.BootID, b.Last, after, envelope.ErrChain)
	}
	server := ""
	if last != nil {
		if e, err := envelope.ParseEntry(last); err == nil {
			server = e.Link().ServerID
		}
	}
	for after < b.Last && ctx.Err() == nil {
		var entries [][]byte
		err := a.call(ctx, func(ctx context.Context) (err error) {
			_, entries, err = a.servers.ReadJournal(ctx, address, b.BootID, after)
			return err
		})
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return fmt.Errorf("journal of boot %x has %d entries, and none after %d is given", b.BootID, b.Last, after)
		}
		sequences := make([]uint64, 0, len(entries))
		for _, raw := range entries {
			e, err := envelope.ParseEntry(raw)
			if err != nil {
				return fmt.Errorf("journal of boot %x after entry %d: %w", b.BootID, after, err)
			}
			l := e.Link()
			if l.BootID != b.BootID || l.Sequence <= after || l.Sequence > 1<<62 {
				return fmt.Errorf("journal of boot %x after entry %d: %w: what follows is entry %d of boot %x", b.BootID, after, envelope.ErrChain, l.Sequence, l.BootID)
			}
			after, server = l.Sequence, l.ServerID
			sequences = append(sequences, l.Sequence)
		}
		if err := a.call(ctx, func(ctx context.Context) error { return a.store.AddEntries(ctx, b.BootID, sequences, entries) }); err != nil {
			return err
		}
	}
	if !b.Ended || after < b.Last || len(ends) > 0 {
		return nil
	}
	end := leaf.JournalEnd{ServerID: server, BootID: b.BootID, Last: b.Last, Torn: b.Torn}
	row := leaf.Row{Key: leaf.Key{Kind: leaf.End, ID: b.BootID, Version: int64(b.Last)}, Content: end.Encode()}
	return a.call(ctx, func(ctx context.Context) error { return a.store.AddStatements(ctx, []leaf.Row{row}, nil) })
}

// look adds leaves for what is new.
func (a *Auditor) look(ctx context.Context) error {
	if !a.loaded {
		if err := a.load(ctx); err != nil {
			return err
		}
	}
	var h leaf.Horizon
	err := a.call(ctx, func(ctx context.Context) (err error) {
		h, err = a.store.Horizon(ctx)
		return err
	})
	if err != nil {
		return err
	}
	for _, kind := range leaf.Kinds() {
		if err := a.lookFor(ctx, kind, h); err != nil {
			// Somebody else may have appended, or the answer was lost: what the
			// tree is now is known only by reading it.
			a.loaded = false
			return err
		}
	}
	return nil
}

// lookFor looks through the rows of a kind that arrived since everything was
// logged. Rows of transactions that were still running then may come between
// those seen, so the cursor stays before the oldest of them.
func (a *Auditor) lookFor(ctx context.Context, kind leaf.Kind, h leaf.Horizon) error {
	place := from(kind, h)
	if place.Arrived < h.Cursors[kind].Arrived {
		a.slog.Warn("transactions are numbered lower than before: looking through all rows again", "kind", kind.String())
	}
	limit := leaf.Place{Arrived: h.Oldest, Key: leaf.Key{Kind: kind}}
	for {
		var found []leaf.Found
		err := a.call(ctx, func(ctx context.Context) (err error) {
			found, err = a.store.Discover(ctx, kind, place, pageRows)
			return err
		})
		if err != nil {
			return err
		}
		var keys []leaf.Key
		var hashes []tlog.Hash
		tree, counted := a.tree.clone(), a.tally(kind)
		for i := range found {
			if !found[i].Logged {
				keys = append(keys, found[i].Key)
				hashes = tree.add(found[i].Hash(), hashes)
				count(counted, &found[i].Row)
			}
		}
		done := limit
		full := len(found) == pageRows
		if full {
			last := found[len(found)-1]
			place = leaf.Place{Arrived: last.Arrived, Key: last.Key}
			if place.Arrived < limit.Arrived {
				done = place
			}
		}
		if len(keys) > 0 || full && done == place {
			err := a.call(ctx, func(ctx context.Context) error {
				return a.store.Append(ctx, a.tree.size, keys, tlog.StoredHashCount(a.tree.size), hashes, counted, done)
			})
			if err != nil {
				return err
			}
			a.tree = tree
			a.unjudged.add(counted)
		}
		if !full {
			return nil
		}
		a.countBehind(ctx)
	}
}

// from is the place after which rows of a kind may not be logged.
func from(kind leaf.Kind, h leaf.Horizon) leaf.Place {
	place := h.Cursors[kind]
	if place.Arrived > h.Next {
		// The database was restored into another cluster, whose transactions have
		// lower numbers. All rows are looked at again.
		place = leaf.Place{}
	}
	place.Key.Kind = kind
	return place
}

// load reads where the tree stands, and refuses one that is not what was signed.
func (a *Auditor) load(ctx context.Context) error {
	var tree frontier
	var last leaf.Note
	err := a.call(ctx, func(ctx context.Context) error {
		size, err := a.store.Size(ctx)
		if err != nil {
			return err
		}
		if tree, err = loadFrontier(ctx, a.store, size); err != nil {
			return err
		}
		last, err = a.store.LastCheckpoint(ctx)
		return err
	})
	if err != nil {
		return err
	}
	latest, err := a.export.Latest()
	if err != nil {
		return err
	}
	known := []checkpoint.Checkpoint{latest, a.signed}
	if last.Size > 0 {
		c, err := a.log.open(last.Text)
		if err != nil || int64(c.Size) != last.Size {
			return fmt.Errorf("%w: the newest checkpoint in it is none of this log", ErrRolledBack)
		}
		known = append(known, c)
	}
	newest := checkpoint.Checkpoint{}
	for _, c := range known {
		if c.Size == 0 {
			continue
		}
		if int64(c.Size) > tree.size {
			return fmt.Errorf("%w: it has %d leaves, and a checkpoint of %d was signed", ErrRolledBack, tree.size, c.Size)
		}
		var root tlog.Hash
		err := a.call(ctx, func(ctx context.Context) (err error) {
			root, err = tlog.TreeHash(int64(c.Size), hashReader(ctx, a.store))
			return err
		})
		if err != nil {
			return err
		}
		if root != tlog.Hash(c.Root) {
			return fmt.Errorf("%w: its first %d leaves are others than those that were signed", ErrRolledBack, c.Size)
		}
		if c.Size > newest.Size {
			newest = c
		}
	}
	a.tree, a.signed, a.exported, a.loaded = tree, newest, int64(latest.Size), true
	return nil
}

// sign has the tree signed when it grew.
func (a *Auditor) sign(ctx context.Context) error {
	if err := a.storeSigned(ctx); err != nil {
		return err
	}
	if a.tree.size == int64(a.signed.Size) || time.Since(a.signedAt) < a.timing.Sign {
		return nil
	}
	root := a.tree.root()
	var note string
	err := a.call(ctx, func(ctx context.Context) (err error) {
		note, err = a.servers.SignCheckpoint(ctx, a.log.Origin, uint64(a.tree.size), root)
		return err
	})
	if err != nil {
		return err
	}
	c, err := a.log.open([]byte(note))
	if err != nil {
		return err
	}
	if int64(c.Size) != a.tree.size || c.Root != [sha256.Size]byte(root) {
		return errors.New("the cryptoserver signed another checkpoint than it was asked to")
	}
	// Whatever becomes of storing it: it is signed, and must stay true.
	a.signed, a.signedAt, a.unstored = c, time.Now(), []byte(note)
	return a.storeSigned(ctx)
}

// storeSigned stores what was signed, unless that was done.
func (a *Auditor) storeSigned(ctx context.Context) error {
	if a.unstored == nil {
		return nil
	}
	err := a.call(ctx, func(ctx context.Context) error {
		last, err := a.store.LastCheckpoint(ctx)
		if err != nil || last.Size >= int64(a.signed.Size) {
			return err
		}
		return a.store.AddCheckpoint(ctx, leaf.Note{Size: int64(a.signed.Size), Text: a.unstored})
	})
	if err == nil {
		a.unstored = nil
	}
	return err
}

// exportPending exports what the database has and the folder has not.
func (a *Auditor) exportPending(ctx context.Context) error {
	for a.exported < int64(a.signed.Size) {
		var notes []leaf.Note
		err := a.call(ctx, func(ctx context.Context) (err error) {
			notes, err = a.store.Checkpoints(ctx, a.exported, pageRows)
			return err
		})
		if err != nil {
			return err
		}
		if len(notes) == 0 {
			return nil // signed, but not stored
		}
		for _, n := range notes {
			if err := a.export.Write(n.Text); err != nil {
				return err
			}
			a.exported = n.Size
		}
	}
	return nil
}

// settle states which blocks of the seal events of a while ago are stored.
func (a *Auditor) settle(ctx context.Context) error {
	for ctx.Err() == nil {
		n := 0
		err := a.call(ctx, func(ctx context.Context) error {
			found, err := a.store.Settled(ctx, a.timing.Settle, pageEvents)
			if err != nil || len(found) == 0 {
				return err
			}
			n = len(found)
			var rows []leaf.Row
			for i := range found {
				e, err := envelope.ParseEntry(found[i].Content)
				if err != nil || e.SealEvent == nil || len(e.SealEvent.Blocks) == 0 {
					continue // one that cannot be read is for Verify to say
				}
				digests, err := a.store.Digests(ctx, blocksOf(e.SealEvent))
				if err != nil {
					return err
				}
				s := leaf.BlocksStored{BootID: e.SealEvent.BootID, Sequence: e.SealEvent.Sequence, Stored: make([]bool, len(digests))}
				for j, d := range digests {
					s.Stored[j] = d != nil && *d == e.SealEvent.Blocks[j].Digest
				}
				rows = append(rows, leaf.Row{Key: leaf.Key{Kind: leaf.Stored, ID: s.BootID, Version: int64(s.Sequence)}, Content: s.Encode()})
			}
			last := found[n-1]
			return a.store.AddStatements(ctx, rows, &leaf.Place{Arrived: last.Arrived, Key: last.Key})
		})
		if err != nil || n < pageEvents {
			return err
		}
	}
	return nil
}

func blocksOf(e *envelope.SealEvent) []leaf.Block {
	out := make([]leaf.Block, len(e.Blocks))
	for i, b := range e.Blocks {
		out[i] = leaf.Block{EAN: e.EAN.Int64(), Field: int64(b.Field), Day: int64(b.Day), Version: int64(b.Version)}
	}
	return out
}

// trouble says once that something fails, and once that it goes on.
type trouble struct {
	log  *slog.Logger
	what string
	last string
	ever bool
}

func (t *trouble) is(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		if t.last != "" || !t.ever {
			t.log.Info(t.what + ": going on")
		}
		t.last, t.ever = "", true
		return
	}
	// The texts of timeouts differ from one to the next.
	kind := err.Error()
	for _, k := range []error{ErrRolledBack, ErrExport, envelope.ErrChain, envelope.ErrFormat, context.DeadlineExceeded} {
		if errors.Is(err, k) {
			kind = k.Error()
			break
		}
	}
	if kind != t.last {
		t.log.Error(t.what+": standing still, and tried again", "error", err.Error())
	}
	t.last, t.ever = kind, true
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
