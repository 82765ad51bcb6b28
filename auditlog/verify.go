package auditlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog/leaf"
	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
)

// Options of Verify.
type Options struct {
	Log    Log
	Seals  *authz.SealKeys // of legal files and supplier records
	Zone   *time.Location  // of the market, on whose local days steps were taken
	Export *Export         // nil: only the checkpoints in the database
	// Grace is how long rows may take to be logged, and openings to be recorded;
	// Verify waits so long, once, when it meets any that are not. 0: not at all.
	Grace time.Duration
	// Progress is told how far each part is; nil for nobody.
	Progress func(part string, done, total int64)
}

const (
	pageLeaves  = 2000
	pageJournal = 500
	// maxAgain bounds what is looked at again at the end, and maxResealed the
	// blocks of which it is remembered that they are not what an event says.
	maxAgain    = 100_000
	maxResealed = 1_000_000
	// backdated is more than a request, a commit and the clocks take together.
	backdated = 5 * time.Minute
)

// Verify checks everything: each leaf against its row, the tree against all
// checkpoints, records and receipts against the journals, the journals'
// chains, the sealed blocks and facts against the seal events, the legal files
// against the steps that made them and the records of those steps, and what was
// opened against the legal files that are stored. It reads in pages and
// remembers little, however long the log is. The error is that it could not be
// done; what it found is in the report.
func Verify(ctx context.Context, r Reader, o Options) (*Report, error) {
	if o.Zone == nil {
		return nil, errors.New("auditlog: the market's time zone is not given")
	}
	v := &verifier{Reader: r, o: o, rep: &Report{Origin: o.Log.Origin, Counts: map[What]int64{}, Findings: []Finding{}}}
	if o.Progress == nil {
		v.o.Progress = func(string, int64, int64) {}
	}
	for _, part := range []func(context.Context) error{v.leaves, v.unlogged, v.files, v.suppliers, v.journals, v.resealed, v.again} {
		if err := part(ctx); err != nil {
			return nil, err
		}
	}
	return v.rep, nil
}

type verifier struct {
	Reader
	o   Options
	rep *Report

	unloggedKeys []leaf.Key          // not logged when they were met
	unrecorded   []receipt           // receipts without a record when they were met
	unjournaled  []receipt           // records whose receipt was in no journal when they were met
	times        map[int64]time.Time // of the records of a page, by their leaf
	logged       int64               // legal files
	changed      map[leaf.Block]changedBlock
	overflow     bool
}

type receipt struct {
	envelope.Receipt
	raw  []byte
	leaf int64
}

type changedBlock struct {
	digest [16]byte // of the row
	event  Finding
}

// describe says in a finding which row is meant.
func describe(what What, k leaf.Key, index int64) Finding {
	f := Finding{What: what, Row: k.Kind.String()}
	if index >= 0 {
		f.Leaf = &index
	}
	switch k.Kind {
	case leaf.Access:
		f.EAN, f.Interaction = fmt.Sprintf("%018d", k.Number), uuidText(k.ID)
		if k.Number == 0 {
			f.EAN = ""
		}
	case leaf.LegalFile:
		f.EAN, f.Version = fmt.Sprintf("%018d", k.Number), k.Version
	case leaf.Supplier:
		f.GLN, f.Version = fmt.Sprintf("%013d", k.Number), k.Version
	case leaf.Control:
		f.Sequence = uint64(k.Version)
	case leaf.Journal, leaf.End, leaf.Stored:
		f.Boot, f.Sequence = bootText(k.ID), uint64(k.Version)
	}
	return f
}

// leaves goes through the log in its order, and rebuilds the tree.
func (v *verifier) leaves(ctx context.Context) error {
	size, err := v.Size(ctx)
	if err != nil {
		return err
	}
	v.rep.Size = size
	heads, err := newHeads(ctx, v)
	if err != nil {
		return err
	}
	var tree frontier
	for from := int64(0); from < size; from += pageLeaves {
		to := min(from+pageLeaves, size)
		p, err := readPage(ctx, v, from, to)
		if err != nil {
			return err
		}
		if len(p.keys)+len(p.stored) == 0 {
			// Nothing for so long: whoever put a leaf far beyond the end must not make
			// this go on for ever.
			v.rep.add(Finding{What: LeafMissing, Leaf: new(from), Detail: fmt.Sprintf("and whatever else is missing before leaf %d, the last there is", size-1)})
			size = from
			break
		}
		if err := v.content(ctx, p.keys, p.rows); err != nil {
			return err
		}
		err = p.compare(&tree, v.rep.add, func(i int64, row *leaf.Row) error {
			// What the auditor finds is logged before the next checkpoint, so that a
			// record from before the one that was signed last came in afterwards.
			if at, ok := v.times[i]; ok && at.Before(v.rep.SignedAt.Add(-backdated)) {
				f := describe(Backdated, row.Key, i)
				f.At, f.Detail = at, "logged after the checkpoint of "+v.rep.SignedAt.Format(time.RFC3339)
				v.rep.add(f)
			}
			return heads.check(ctx, &tree)
		})
		if err != nil {
			return err
		}
		v.o.Progress("log", to, size)
	}
	if err := heads.rest(ctx, size); err != nil {
		return err
	}
	v.rep.count(Unsigned, size-v.rep.Signed)
	return nil
}

// page is a piece of the log as it is stored.
type page struct {
	from, to int64
	keys     []leaf.IndexedKey // those that are there
	rows     []*leaf.Row       // of the keys; nil for one that is not there
	stored   map[int64]tlog.Hash
}

func readPage(ctx context.Context, r Reader, from, to int64) (*page, error) {
	p := &page{from: from, to: to}
	var err error
	if p.keys, err = r.Leaves(ctx, from, to); err != nil {
		return nil, err
	}
	hashes, err := r.HashRange(ctx, tlog.StoredHashCount(from), tlog.StoredHashCount(to))
	if err != nil {
		return nil, err
	}
	p.stored = make(map[int64]tlog.Hash, len(hashes))
	for _, h := range hashes {
		p.stored[h.Index] = h.Hash
	}
	bare := make([]leaf.Key, len(p.keys))
	for i := range p.keys {
		bare[i] = p.keys[i].Key
	}
	p.rows, err = r.Rows(ctx, bare)
	return p, err
}

// compare goes on from a tree of the leaves before: each leaf with its row, and
// each stored hash with what follows from the leaves. each is called once the
// tree has a leaf; its row is nil when it is not there.
func (p *page) compare(tree *frontier, add func(Finding), each func(i int64, row *leaf.Row) error) error {
	n := 0
	var want []tlog.Hash
	for i := p.from; i < p.to; i++ {
		at := tlog.StoredHashCount(i)
		h, have := p.stored[at]
		var row *leaf.Row
		if n < len(p.keys) && p.keys[n].Index == i {
			row = p.rows[n]
			if row == nil {
				add(describe(RowMissing, p.keys[n].Key, i))
			} else if computed := row.Hash(); !have {
				h = computed
			} else if computed != h {
				add(describe(RowChanged, p.keys[n].Key, i))
			}
			n++
		} else {
			add(Finding{What: LeafMissing, Leaf: new(i)})
		}
		if !have {
			add(Finding{What: LeafMissing, Leaf: new(i), Detail: "its hash"})
		}
		// The stored hash goes into the tree: that a row was changed is told
		// already, and the tree tells whether anything else was.
		want = tree.add(h, want[:0])
		for j, w := range want[1:] {
			if got, ok := p.stored[at+1+int64(j)]; !ok || got != w {
				add(Finding{What: TreeDamaged, Leaf: new(i), Detail: fmt.Sprintf("hash %d of the tree", at+1+int64(j))})
			}
		}
		if err := each(i, row); err != nil {
			return err
		}
	}
	return nil
}

// content checks what the rows of a page say.
func (v *verifier) content(ctx context.Context, keys []leaf.IndexedKey, rows []*leaf.Row) error {
	var receipts []receipt
	var journal []leaf.Key
	var unopened []leaf.IndexedKey
	var files []fact
	var steps, switched []toldStep
	v.times = make(map[int64]time.Time, len(rows))
	for i, row := range rows {
		if row == nil {
			continue
		}
		index := keys[i].Index
		switch row.Kind {
		case leaf.Access:
			v.rep.Records++
			rec, err := audit.Parse(row.Content, row.Receipt)
			if err != nil || rec.InteractionID != row.ID || rec.EAN.Int64() != row.Number {
				v.rep.add(describe(RowBad, row.Key, index))
				continue
			}
			v.times[index] = rec.At
			if len(rec.Receipt) == 0 {
				if rec.FileVersion > 0 {
					unopened = append(unopened, keys[i])
					files = append(files, fact{leaf.Key{Kind: leaf.LegalFile, Number: row.Number, Version: int64(rec.FileVersion)}, rec.LegalFile})
				}
				if rec.Operation == audit.ConsentStep && rec.Outcome == audit.Given {
					steps = append(steps, toldStep{rec, index})
				}
				if rec.Operation == audit.SupplierStep && rec.Outcome == audit.Given {
					switched = append(switched, toldStep{rec, index})
				}
				continue
			}
			rc, err := rec.Opening()
			if err != nil {
				v.rep.add(describe(ReceiptBad, row.Key, index))
				continue
			}
			receipts = append(receipts, receipt{*rc, rec.Receipt, index})
			journal = append(journal, leaf.Key{Kind: leaf.Journal, ID: rc.BootID, Version: int64(rc.Sequence)})
		case leaf.LegalFile:
			v.logged++ // and looked at in the order of versions, as supplier records are
		}
	}
	if err := v.recordedOn(ctx, unopened, files); err != nil {
		return err
	}
	if err := v.taken(ctx, steps); err != nil {
		return err
	}
	if err := v.suspended(ctx, switched); err != nil {
		return err
	}
	entries, err := v.Rows(ctx, journal)
	if err != nil {
		return err
	}
	for i, e := range entries {
		switch {
		case e == nil && len(v.unjournaled) < maxAgain:
			v.unjournaled = append(v.unjournaled, receipts[i])
		case e == nil:
			v.rep.add(receipts[i].finding(NotJournaled))
		case !bytes.Equal(e.Content, receipts[i].raw):
			v.rep.add(receipts[i].finding(ReceiptBad))
		}
	}
	return nil
}

func (r *receipt) finding(what What) Finding {
	f := Finding{What: what, EAN: r.EAN.String(), Interaction: uuidText(r.InteractionID), Server: r.ServerID, Boot: bootText(r.BootID), Sequence: r.Sequence, At: r.At}
	if r.leaf >= 0 {
		f.Leaf = new(r.leaf)
	}
	return f
}

// unlogged looks for rows that the log does not have.
func (v *verifier) unlogged(ctx context.Context) error {
	for _, kind := range leaf.Kinds() {
		place, done := leaf.Place{Key: leaf.Key{Kind: kind}}, int64(0)
		for {
			found, err := v.Discover(ctx, kind, place, pageLeaves)
			if err != nil {
				return err
			}
			for _, f := range found {
				if f.Logged {
					continue
				}
				if len(v.unloggedKeys) < maxAgain {
					v.unloggedKeys = append(v.unloggedKeys, f.Key)
				} else {
					v.rep.add(describe(RowUnlogged, f.Key, -1))
				}
			}
			done += int64(len(found))
			v.o.Progress("rows", done, v.rep.Size)
			if len(found) < pageLeaves {
				break
			}
			last := found[len(found)-1]
			place = leaf.Place{Arrived: last.Arrived, Key: last.Key}
		}
	}
	return nil
}

// journals goes through the journals, boot by boot.
func (v *verifier) journals(ctx context.Context) error {
	var chain *envelope.Chain
	var boot [16]byte
	var sequence uint64
	for {
		rows, err := v.Journal(ctx, boot, sequence, pageJournal)
		if err != nil {
			return err
		}
		var receipts []receipt
		var events, facts []*envelope.SealEvent
		for i := range rows {
			row := &rows[i]
			if chain == nil || chain.BootID != row.ID {
				if err := v.end(ctx, chain); err != nil {
					return err
				}
				chain = &envelope.Chain{BootID: row.ID}
				if e, err := envelope.ParseEntry(row.Content); err == nil {
					chain.ServerID = e.Link().ServerID
				}
			}
			e, err := chain.Next(row.Content)
			if err != nil {
				f := describe(JournalBroken, row.Key, -1)
				f.Server, f.Detail = chain.ServerID, err.Error()
				v.rep.add(f)
				// Go on from here, so that one gap is one finding.
				if e, err = envelope.ParseEntry(row.Content); err != nil {
					continue
				}
				*chain = envelope.Chain{ServerID: chain.ServerID, BootID: row.ID, Sequence: e.Link().Sequence - 1, Hash: e.Link().Previous}
				if e, err = chain.Next(row.Content); err != nil {
					continue
				}
			}
			v.rep.Entries++
			if e.Receipt != nil {
				receipts = append(receipts, receipt{*e.Receipt, row.Content, -1})
			} else if len(e.SealEvent.Blocks) > 0 {
				events = append(events, e.SealEvent)
			} else if e.SealEvent.Version > 0 {
				facts = append(facts, e.SealEvent)
			}
		}
		if err := v.recorded(ctx, receipts, true); err != nil {
			return err
		}
		if err := v.openedOn(ctx, receipts); err != nil {
			return err
		}
		if err := v.sealed(ctx, events); err != nil {
			return err
		}
		if err := v.sealedFacts(ctx, facts); err != nil {
			return err
		}
		v.o.Progress("journals", v.rep.Entries, v.rep.Entries)
		if len(rows) < pageJournal {
			return v.end(ctx, chain)
		}
		last := rows[len(rows)-1]
		boot, sequence = last.ID, uint64(last.Version)
	}
}

// end compares the end of a journal with what the auditor was told of it.
func (v *verifier) end(ctx context.Context, c *envelope.Chain) error {
	if c == nil {
		return nil
	}
	ends, err := v.Ends(ctx, c.BootID)
	if err != nil {
		return err
	}
	f := Finding{Server: c.ServerID, Boot: bootText(c.BootID), Sequence: c.Sequence}
	if len(ends) == 0 {
		f.What = StillOpen
		v.rep.add(f)
		return nil
	}
	for _, raw := range ends {
		e, err := leaf.ParseJournalEnd(raw)
		switch {
		case err != nil || e.BootID != c.BootID:
			f.What = RowBad
			v.rep.add(f)
		case e.Last != c.Sequence:
			f.What, f.Detail = JournalCut, fmt.Sprintf("its last entry is %d", e.Last)
			v.rep.add(f)
		case e.Torn:
			f.What = JournalTorn
			v.rep.add(f)
		}
	}
	return nil
}

// recorded looks for the record of each receipt. Those that have none are kept
// for another look at the end.
func (v *verifier) recorded(ctx context.Context, receipts []receipt, again bool) error {
	keys := make([]leaf.Key, len(receipts))
	for i, r := range receipts {
		keys[i] = leaf.Key{Kind: leaf.Access, ID: r.InteractionID, Number: r.EAN.Int64()}
	}
	rows, err := v.Rows(ctx, keys)
	if err != nil {
		return err
	}
	for i := range receipts {
		r := &receipts[i]
		switch row := rows[i]; {
		case row == nil && again && len(v.unrecorded) < maxAgain:
			v.unrecorded = append(v.unrecorded, *r)
		case row == nil:
			v.rep.add(r.finding(NotRecorded))
		case bytes.Equal(row.Receipt, r.raw):
		default:
			// Two receipts of one interaction: a retry when they are of the same.
			other, err := envelope.ParseReceipt(row.Receipt)
			same := err == nil && other.Content == r.Content && other.Supplier == r.Supplier && other.TokenID == r.TokenID && other.Employee == r.Employee && other.LegalFile == r.LegalFile
			if same {
				v.rep.add(r.finding(OpenedAgain))
			} else {
				v.rep.add(r.finding(Another))
			}
		}
	}
	return nil
}

// sealed compares what was sealed, and stated to be stored, with what is there.
func (v *verifier) sealed(ctx context.Context, events []*envelope.SealEvent) error {
	keys := make([]leaf.Key, len(events))
	for i, e := range events {
		keys[i] = leaf.Key{Kind: leaf.Stored, ID: e.BootID, Version: int64(e.Sequence)}
		v.rep.Blocks += int64(len(e.Blocks))
	}
	statements, err := v.Rows(ctx, keys)
	if err != nil {
		return err
	}
	for i, e := range events {
		f := Finding{EAN: e.EAN.String(), Server: e.ServerID, Boot: bootText(e.BootID), Sequence: e.Sequence, At: e.At}
		if statements[i] == nil {
			v.rep.count(NotYetSettled, 1)
			continue
		}
		s, err := leaf.ParseBlocksStored(statements[i].Content)
		if err != nil || s.BootID != e.BootID || s.Sequence != e.Sequence || len(s.Stored) != len(e.Blocks) {
			f.What, f.Row = RowBad, leaf.Stored.String()
			v.rep.add(f)
			continue
		}
		blocks := blocksOf(e)
		digests, err := v.Digests(ctx, blocks)
		if err != nil {
			return err
		}
		for j, b := range e.Blocks {
			f.Version, f.Detail = int64(b.Version), fmt.Sprintf("field %d of %s", b.Field, b.Day)
			switch {
			case !s.Stored[j]:
				v.rep.count(NotStored, 1)
			case digests[j] == nil:
				f.What = BlockMissing
				v.rep.add(f)
			case *digests[j] != b.Digest:
				// Right when it was sealed again: that is told by another event.
				if v.changed == nil {
					v.changed = map[leaf.Block]changedBlock{}
				}
				if len(v.changed) < maxResealed {
					f.What = BlockChanged
					v.changed[blocks[j]] = changedBlock{*digests[j], f}
				} else {
					v.overflow = true
				}
			}
		}
	}
	return nil
}

// resealed goes through the seal events again when there are blocks that are
// not what an event says, and takes out those that are what another says.
func (v *verifier) resealed(ctx context.Context) error {
	if v.overflow {
		v.rep.add(Finding{What: TooMany, Detail: fmt.Sprintf("more than %d", maxResealed)})
	}
	var boot [16]byte
	var sequence uint64
	for done := int64(0); len(v.changed) > 0; {
		rows, err := v.Journal(ctx, boot, sequence, pageJournal)
		if err != nil {
			return err
		}
		for i := range rows {
			e, err := envelope.ParseEntry(rows[i].Content)
			if err != nil || e.SealEvent == nil {
				continue
			}
			blocks := blocksOf(e.SealEvent)
			for j, b := range blocks {
				if c, ok := v.changed[b]; ok && c.digest == e.SealEvent.Blocks[j].Digest {
					delete(v.changed, b)
				}
			}
		}
		done += int64(len(rows))
		v.o.Progress("blocks sealed again", done, v.rep.Entries)
		if len(rows) < pageJournal {
			break
		}
		last := rows[len(rows)-1]
		boot, sequence = last.ID, uint64(last.Version)
	}
	for _, c := range v.changed {
		v.rep.add(c.event)
	}
	return nil
}

// again looks a second time at what may have been on its way.
func (v *verifier) again(ctx context.Context) error {
	if len(v.unloggedKeys)+len(v.unrecorded)+len(v.unjournaled) == 0 {
		return nil
	}
	v.o.Progress("what may be on its way", 0, 1)
	if sleep(ctx, v.o.Grace); ctx.Err() != nil {
		return ctx.Err()
	}
	for from := 0; from < len(v.unloggedKeys); from += pageLeaves {
		part := v.unloggedKeys[from:min(from+pageLeaves, len(v.unloggedKeys))]
		at, err := v.Indexes(ctx, part)
		if err != nil {
			return err
		}
		for i, index := range at {
			if index < 0 {
				v.rep.add(describe(RowUnlogged, part[i], -1))
			}
		}
	}
	for from := 0; from < len(v.unrecorded); from += pageJournal {
		if err := v.recorded(ctx, v.unrecorded[from:min(from+pageJournal, len(v.unrecorded))], false); err != nil {
			return err
		}
	}
	for i := range v.unjournaled {
		r := &v.unjournaled[i]
		rows, err := v.Rows(ctx, []leaf.Key{{Kind: leaf.Journal, ID: r.BootID, Version: int64(r.Sequence)}})
		if err != nil {
			return err
		}
		what := NotJournaled
		if rows[0] == nil {
			ends, err := v.Ends(ctx, r.BootID)
			if err != nil {
				return err
			}
			for _, raw := range ends {
				if e, err := leaf.ParseJournalEnd(raw); err == nil && e.BootID == r.BootID && e.Torn && r.Sequence > e.Last {
					what = LostInCrash
				}
			}
		} else if bytes.Equal(rows[0].Content, r.raw) {
			continue
		} else {
			what = ReceiptBad
		}
		v.rep.add(r.finding(what))
		if what == LostInCrash { // so that its journal does not tell on what it was opened
			if err := v.openedOn(ctx, v.unjournaled[i:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// heads are the checkpoints of the database and of the folder, in the order of
// their size.
type heads struct {
	v      *verifier
	stored []leaf.Note // of the database, read ahead
	after  int64
	walk   *exported
	name   string    // of the exported one that is next; "": none
	next   leaf.Note // it
	past   int64     // size of the exported one before
}

func newHeads(ctx context.Context, v *verifier) (*heads, error) {
	h := &heads{v: v}
	if v.o.Export == nil {
		return h, h.readAhead(ctx)
	}
	var err error
	if h.walk, err = v.o.Export.walk(); err != nil {
		return nil, err
	}
	return h, errors.Join(h.readAhead(ctx), h.advance())
}

func (h *heads) readAhead(ctx context.Context) (err error) {
	if len(h.stored) > 0 {
		return nil
	}
	if h.stored, err = h.v.Checkpoints(ctx, h.after, pageLeaves); len(h.stored) > 0 {
		h.after = h.stored[len(h.stored)-1].Size
	}
	return err
}

func (h *heads) advance() (err error) {
	h.name, h.next, err = h.walk.next()
	if err != nil || h.name == "" || h.name == latestName {
		return err
	}
	if h.next.Size <= h.past {
		h.bad("out of place in the folder: "+h.name, h.next.Size)
		return h.advance()
	}
	h.past = h.next.Size
	return nil
}

func (h *heads) bad(detail string, size int64) {
	f := Finding{What: BadCheckpoint, Detail: detail}
	if size > 0 {
		f.Leaf = new(size - 1)
	}
	h.v.rep.add(f)
}

// check compares the tree with the checkpoints of its size.
func (h *heads) check(ctx context.Context, tree *frontier) error {
	for len(h.stored) > 0 && h.stored[0].Size <= tree.size {
		h.compare(tree, h.stored[0], "in the database", &h.v.rep.Checkpoints)
		h.stored = h.stored[1:]
		if err := h.readAhead(ctx); err != nil {
			return err
		}
	}
	for h.name != "" && h.name != latestName && h.next.Size <= tree.size {
		h.compare(tree, h.next, "exported, "+h.name, &h.v.rep.Exported)
		if err := h.advance(); err != nil {
			return err
		}
	}
	return nil
}

func (h *heads) compare(tree *frontier, n leaf.Note, which string, count *int) {
	c, err := h.v.o.Log.open(n.Text)
	if err != nil || int64(c.Size) != n.Size {
		h.bad(which, n.Size)
		return
	}
	*count++
	if root := tree.root(); root != tlog.Hash(c.Root) {
		h.v.rep.add(Finding{What: LogForked, Leaf: new(n.Size - 1), At: c.At,
			Detail: fmt.Sprintf("%s: of the leaves up to this one, something was altered; up to leaf %d all is as signed", which, h.v.rep.Signed-1)})
		return
	}
	h.v.rep.Signed, h.v.rep.SignedAt = max(h.v.rep.Signed, n.Size), c.At
}

// rest are the checkpoints of more leaves than there are.
func (h *heads) rest(ctx context.Context, size int64) error {
	beyond := func(n leaf.Note, which string) {
		c, err := h.v.o.Log.open(n.Text)
		switch {
		case err != nil || n.Size > 0 && int64(c.Size) != n.Size:
			h.bad(which, n.Size)
		case int64(c.Size) > size:
			// It may have been signed since the log was read.
			if now, err := h.v.Size(ctx); err != nil || now < int64(c.Size) {
				h.v.rep.add(Finding{What: LogCut, Leaf: new(int64(c.Size) - 1), At: c.At,
					Detail: fmt.Sprintf("%s: it was signed with %d leaves, and has %d", which, c.Size, size)})
			}
		}
	}
	for len(h.stored) > 0 {
		beyond(h.stored[0], "in the database")
		h.stored = h.stored[1:]
		if err := h.readAhead(ctx); err != nil {
			return err
		}
	}
	for h.walk != nil && h.name != "" {
		beyond(h.next, "exported, "+h.name)
		if err := h.advance(); err != nil {
			return err
		}
	}
	return nil
}
