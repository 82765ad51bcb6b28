package ingest

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// PeopleSealer makes data keys and seals names and addresses inside the HSM.
type PeopleSealer interface {
	Mint(ctx context.Context, specs []envelope.KeySpec) ([]envelope.KeyRecord, error)
	SealIdentities(ctx context.Context, in []envelope.PlainIdentity) ([]envelope.IdentityContent, error)
}

// PeopleStore is what storing them needs of the database. It never reads a
// ciphertext, nor a blind index.
type PeopleStore interface {
	LegalFiles(ctx context.Context, eans []meter.EAN) ([]authz.StoredFile, error)
	// IdentityHeads returns what is stored of each, as asked, in order.
	IdentityHeads(ctx context.Context, at []Customer) ([]IdentityHead, error)
	// CommitIdentities stores all or nothing; ErrConflict as of Store.Commit.
	CommitIdentities(ctx context.Context, keys []envelope.KeyRecord, rows []IdentityRow) error
}

// Customer is who lives at a metering point since a day, the first of an
// occupancy.
type Customer struct {
	EAN  meter.EAN
	From meter.Day
}

// IdentityHead is what the database shows of the newest version of an identity.
type IdentityHead struct {
	Version    uint32 // 0: none is stored
	ContentMAC [32]byte
	Key        *envelope.KeyRecord // nil: there is none
}

// IdentityRow is a sealed identity to be stored.
type IdentityRow struct {
	EAN        meter.EAN
	Field      meter.FieldCode
	Day        meter.Day
	Version    uint32
	KeyID      [16]byte
	ContentMAC [32]byte
	Ciphertext []byte
	BlindIndex [32]byte
}

// PersonLine is one line of a file of names and addresses.
type PersonLine struct {
	Line int // from 1, the heading included
	Customer
	Person meter.Person
}

// PersonCounts says what became of the lines.
type PersonCounts struct {
	Stored    int `json:"stored"`    // of customers who had none
	Corrected int `json:"corrected"` // became a new version
	Unchanged int `json:"unchanged"` // equal to what is stored
}

// People stores names and addresses. Safe for concurrent use.
type People struct {
	profile *meter.Profile
	keys    *authz.SealKeys
	sealer  PeopleSealer
	store   PeopleStore
}

// ErrNoIdentities says that the market profile has no identities.
var ErrNoIdentities = errors.New("the market profile says nothing of identities (key \"identity\"), so names and addresses are not kept here")

// NewPeople makes a People. Legal files are believed only when they verify under
// keys.
func NewPeople(p *meter.Profile, keys *authz.SealKeys, sealer PeopleSealer, store PeopleStore) (*People, error) {
	if _, ok := p.IdentityCode(); !ok {
		return nil, ErrNoIdentities
	}
	return &People{p, keys, sealer, store}, nil
}

// peopleAtOnce are checked, sealed and stored together.
const peopleAtOnce = 500

// maxPeople bounds a file: all of it is checked before anything is stored.
const maxPeople = 5_000_000

// Check says which lines are of no customer: the metering point is not
// registered, or nobody moved in on the day by its legal file. Errors are those
// of the database.
func (g *People) Check(ctx context.Context, lines []PersonLine) ([]BadLine, error) {
	var bad []BadLine
	for part := range slices.Chunk(lines, peopleAtOnce) {
		eans := make([]meter.EAN, len(part))
		for i, l := range part {
			eans[i] = l.EAN
		}
		files, err := g.store.LegalFiles(ctx, eans)
		if err != nil {
			return nil, err
		}
		if len(files) != len(part) {
			return nil, errors.New("the database answered with another number of legal files")
		}
		for i, l := range part {
			file, err := g.keys.StoredFile(files[i], l.EAN)
			switch {
			case err != nil:
				return nil, fmt.Errorf("legal file of the metering point of line %d: %w", l.Line, err)
			case file == nil:
				bad = append(bad, BadLine{l.Line, 1, "the metering point is not registered: register it first with kluis supply set --commodity"})
			default:
				if o, ok := file.OccupancyAt(l.From); !ok || o.Days.From != l.From {
					bad = append(bad, BadLine{l.Line, 1, "by the legal file nobody moved in on the day of column from"})
				}
			}
		}
	}
	return bad, nil
}

// Store seals and stores lines that Check found nothing wrong with, a part at a
// time: when one fails those before it are stored, and storing the same again
// changes nothing. Progress is told how many are done.
func (g *People) Store(ctx context.Context, lines []PersonLine, progress func(done int)) (PersonCounts, error) {
	var total PersonCounts
	done := 0
	for part := range slices.Chunk(lines, peopleAtOnce) {
		for try := 1; ; try++ {
			counts, err := g.some(ctx, part)
			if try < commitTries && errors.Is(err, ErrConflict) {
				continue
			}
			if err != nil {
				return total, fmt.Errorf("after %d lines: %w", done, err)
			}
			total.Stored += counts.Stored
			total.Corrected += counts.Corrected
			total.Unchanged += counts.Unchanged
			break
		}
		if done += len(part); progress != nil {
			progress(done)
		}
	}
	return total, nil
}

func (g *People) some(ctx context.Context, part []PersonLine) (PersonCounts, error) {
	var counts PersonCounts
	at := make([]Customer, len(part))
	for i, l := range part {
		at[i] = l.Customer
	}
	heads, err := g.store.IdentityHeads(ctx, at)
	if err != nil {
		return counts, err
	}
	if len(heads) != len(part) {
		return counts, errors.New("the database answered with another number of identities")
	}
	var specs []envelope.KeySpec
	for i, h := range heads {
		if h.Key == nil {
			specs = append(specs, envelope.KeySpec{EAN: part[i].EAN, Class: meter.Identity, Month: part[i].From.Month(), Occupancy: part[i].From})
		}
	}
	var minted []envelope.KeyRecord
	if len(specs) > 0 {
		if minted, err = g.sealer.Mint(ctx, specs); err != nil {
			return counts, fmt.Errorf("making data keys: %w", err)
		}
		if len(minted) != len(specs) {
			return counts, fmt.Errorf("the cryptoserver made %d data keys instead of %d", len(minted), len(specs))
		}
	}
	plain := make([]envelope.PlainIdentity, len(part))
	next := 0
	for i, l := range part {
		plain[i] = envelope.PlainIdentity{Version: heads[i].Version + 1, Person: l.Person}
		if heads[i].Key != nil {
			plain[i].Key = *heads[i].Key
		} else {
			plain[i].Key = minted[next]
			next++
		}
	}
	sealed, err := g.sealer.SealIdentities(ctx, plain)
	if err != nil {
		return counts, fmt.Errorf("sealing: %w", err)
	}
	if len(sealed) != len(part) {
		return counts, fmt.Errorf("the cryptoserver sealed %d identities instead of %d", len(sealed), len(part))
	}
	code, _ := g.profile.IdentityCode()
	var keys []envelope.KeyRecord
	var rows []IdentityRow
	for i, h := range heads {
		switch {
		case h.Version > 0 && h.ContentMAC == sealed[i].ContentMAC:
			counts.Unchanged++
			continue
		case h.Version > 0:
			counts.Corrected++
		default:
			counts.Stored++
		}
		if h.Key == nil {
			keys = append(keys, plain[i].Key)
		}
		rows = append(rows, IdentityRow{
			EAN: part[i].EAN, Field: code, Day: part[i].From, Version: plain[i].Version, KeyID: plain[i].Key.ID,
			ContentMAC: sealed[i].ContentMAC, Ciphertext: sealed[i].Ciphertext, BlindIndex: sealed[i].BlindIndex,
		})
	}
	if len(rows) == 0 {
		return counts, nil
	}
	return counts, g.store.CommitIdentities(ctx, keys, rows)
}

// personColumns are those of a file of names and addresses, in any order.
var personColumns = []string{"ean", "name", "street", "house_number", "addition", "postcode", "city", "from"}

// ReadPeople takes a file of names and addresses apart: CSV in UTF-8, packed by
// gzip or not, with a heading of the eight columns. name is for messages. No
// message repeats what a line holds. With SkipBad, lines that cannot be read are
// returned beside the others; without, the first ends it with a LineError.
func ReadPeople(r io.Reader, name string, delimiter rune, p *meter.Profile, opt ReadOptions) (lines []PersonLine, rows int, bad []BadLine, err error) {
	text, err := unpack(r)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%w: %s: %w", ErrFile, name, err)
	}
	in := csv.NewReader(text)
	in.Comma, in.ReuseRecord = delimiter, true
	heading, err := in.Read()
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%w: %s has no heading", ErrFile, name)
	}
	column := make([]int, len(personColumns))
	for i, c := range personColumns {
		if column[i] = slices.Index(heading, c); column[i] < 0 || len(heading) != len(personColumns) {
			return nil, 0, nil, fmt.Errorf("%w: %s: the heading must have the columns ean, name, street, house_number, addition, postcode, city and from, and no others", ErrFile, name)
		}
	}
	seen := map[Customer]bool{}
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		rows++
		if opt.Progress != nil && rows%progressEvery == 0 {
			opt.Progress(rows)
		}
		var l PersonLine
		at, reason := 0, ""
		var pe *csv.ParseError
		switch {
		case errors.As(err, &pe) && errors.Is(pe.Err, csv.ErrFieldCount):
			l.Line, reason = pe.Line, "has another number of columns than the heading"
		case errors.As(err, &pe):
			return nil, 0, nil, fmt.Errorf("%w: %s: line %d: not well-formed CSV", ErrFile, name, pe.StartLine)
		case err != nil:
			return nil, 0, nil, fmt.Errorf("%w: %s, after %d rows: %w", ErrFile, name, rows-1, err)
		default:
			l.Line, _ = in.FieldPos(0)
			if at, reason = l.parse(record, column, p); reason == "" && seen[l.Customer] {
				reason = "the same metering point and day are there twice"
			}
		}
		if reason != "" {
			line := BadLine{l.Line, 1, reason}
			if err == nil && at < len(record) {
				_, line.Column = in.FieldPos(at)
			}
			if !opt.SkipBad {
				return nil, 0, nil, &LineError{name, line}
			}
			if bad = append(bad, line); len(bad) > maxBad {
				return nil, 0, nil, fmt.Errorf("%w: %s has more than %d lines that cannot be read", ErrFile, name, maxBad)
			}
			continue
		}
		seen[l.Customer] = true
		if lines = append(lines, l); len(lines) > maxPeople {
			return nil, 0, nil, fmt.Errorf("%w: %s has more than %d lines: split it", ErrFile, name, maxPeople)
		}
	}
	if rows == 0 {
		return nil, 0, nil, fmt.Errorf("%w: %s has no rows", ErrFile, name)
	}
	return lines, rows, bad, nil
}

// parse reads the cells of a line; a reason: that of the column is no good.
func (l *PersonLine) parse(record []string, column []int, p *meter.Profile) (at int, reason string) {
	cell := func(i int) string { return record[column[i]] }
	a := &l.Person.Address
	l.Person.Name, a.Street, a.Addition, a.City = cell(1), cell(2), cell(4), cell(6)
	var err error
	if l.EAN, err = meter.ParseEAN(cell(0)); err != nil {
		return column[0], err.Error()
	}
	if a.HouseNumber, err = meter.ParseHouseNumber(cell(3)); err != nil {
		return column[3], err.Error()
	}
	if a.Postcode, err = p.ParsePostcode(cell(5)); err != nil {
		return column[5], err.Error()
	}
	if l.From, err = meter.ParseDay(cell(7)); err != nil {
		return column[7], "from must be a local day, YYYY-MM-DD"
	}
	if err = l.Person.Check(); err != nil {
		return column[1], err.Error()
	}
	return 0, ""
}
