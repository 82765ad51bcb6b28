package custodian_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"kluis/authz"
	"kluis/custodian"
	"kluis/meter"
)

const (
	insertFile = `INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`
	alarmStray = "do not follow on the version before"
)

// asks makes a version in which a supplier asks for a consent, as whoever has
// captured a gateway and has a token has it made; nobody stores it.
func (r registrar) asks(prev *authz.LegalFile, id byte) (*authz.LegalFile, []byte) {
	r.w.t.Helper()
	next, err := authz.Apply(prev, authz.RequestConsent{ID: [16]byte{id}, Supplier: gln(1), Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M,
		Days: open(firstDay), ValidUntil: time.Now().AddDate(1, 0, 0), Evidence: "e"}, authz.Actor{Kind: authz.BySupplier, Name: gln(1).String()}, time.Now(), amsterdam)
	r.w.must(err)
	return next, must(authz.Seal(next.Payload(), r.w.pool.servers[0].signer))
}

// alarm waits until so many subjects have stray rows.
func (w *world) alarm(n float64) {
	w.t.Helper()
	w.within("the alarm", func() bool { return w.metric("kluis_custodian_facts_stray") == n })
}

// strays lists what CheckFacts finds stray.
func (w *world) strays() []custodian.Stray {
	w.t.Helper()
	found, err := w.CheckFacts(w.t.Context())
	w.must(err)
	if (len(found.Stray) > 0) != errors.Is(found.Err(), custodian.ErrStrayFacts) {
		w.t.Errorf("%+v: %v", found, found.Err())
	}
	return found.Stray
}

// TestStoredFork: a captured gateway has steps sealed on the version before a
// revocation, in the seconds in which the feed does not have it yet, and
// stores what comes after. The revocation stays what counts, whatever is
// stored, in whatever order, and whatever it takes away itself; the alarm ends
// with the rows.
func TestStoredFork(t *testing.T) {
	t.Parallel()
	for name, stored := range map[string][]int{
		"over the revocation":                  {6},
		"with what was sealed on top":          {6, 7, 8},
		"the other way around":                 {8, 7, 6},
		"without what it was made from":        {7, 8},
		"the same, the other way around":       {8, 7},
		"as what takes away itself, by itself": {8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			r := w.registrar()
			f := r.home(1) // version 4 gave the consent
			w.running()
			w.looked()
			honest := r.steps(f, authz.RevokeConsent{ID: [16]byte{1}}) // version 5
			sealed := map[int][]byte{}
			f5, _ := r.asks(f, 7)
			f6, b := r.asks(f5, 8)
			sealed[6] = b
			f7, b := r.asks(f6, 9)
			sealed[7] = b
			f8, b := r.file(f7, authz.SetOptOut{Days: open(firstDay + 100)})
			sealed[8] = b
			w.within("the revocation is in the feed", func() bool { return w.everywhere(ean(1), 5) })
			for _, n := range stored {
				w.exec(insertFile, ean(1).Int64(), n, sealed[n])
			}
			w.alarm(1)
			w.looked()
			feed := w.pool.servers[0]
			if n := feed.known().FileMinimum(ean(1)); n != 5 || !feed.known().CountsFile(ean(1), 5, honest.SealedAt()) {
				t.Fatalf("version %d is the first that counts, and the revocation counts: %v", n, feed.known().CountsFile(ean(1), 5, honest.SealedAt()))
			}
			if w.log.count(alarmStray) != 1 {
				t.Errorf("%d alarms", w.log.count(alarmStray))
			}
			first := int64(stored[0])
			for _, n := range stored {
				first = min(first, int64(n))
			}
			why := "it was not made from the version before it"
			if first > 6 {
				why = "the version before it is missing, or is stray"
			}
			if got := w.strays(); len(got) != 1 || got[0].Kind != custodian.LegalFiles || got[0].Subject != ean(1).Int64() || got[0].Version != first || got[0].Why != why {
				t.Errorf("%+v", got)
			}
			// One that was started since says so, too, and does not endorse it.
			w.Custodian = w.another(w.copy + "2")
			w.running()
			w.alarm(1)
			if n := feed.known().FileMinimum(ean(1)); n != 5 {
				t.Errorf("version %d is the first that counts, by another custodian", n)
			}
			// Removed, the alarm ends, and the next honest step counts: all that
			// was sealed before it does not.
			w.exec(`DELETE FROM legal_file WHERE ean = $1 AND version > 5`, ean(1).Int64())
			w.alarm(0)
			if got := w.strays(); len(got) != 0 {
				t.Errorf("removed, and %+v", got)
			}
			r.steps(honest, authz.SetOptOut{Days: meter.DayRange{From: firstDay, To: firstDay + 1}})
			w.within("the next step", func() bool { return w.everywhere(ean(1), 6) })
			if feed.known().CountsFile(ean(1), 8, f8.SealedAt()) {
				t.Error("the fork counts still")
			}
		})
	}
}

// TestDeletedInBetween: a version that gave a right is gone before anybody
// looked, so nobody can tell what the next took away, or whether it is a fork.
// It is an alarm; put back, it is told, also by a custodian that was started
// since.
func TestDeletedInBetween(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		w := newWorld(t, 1)
		r := w.registrar()
		f := r.home(1) // version 4 gave the consent
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		runUntil(ctx, w.Custodian, done)
		w.within("the mark", func() bool { return w.value(`SELECT count(*) FROM fact_mark`) == "1" })
		stop()
		w.must(<-done)
		w.exec(`CREATE TABLE kept AS SELECT * FROM legal_file WHERE version = 4`)
		w.exec(`DELETE FROM legal_file WHERE version = 4`)
		r.steps(f, authz.RevokeConsent{ID: [16]byte{1}}, authz.SetOptOut{Days: open(firstDay + 100)}, authz.EndOptOut{From: firstDay + 120})
		w.Custodian = w.another(w.copy + "2")
		ctx, stop = context.WithCancel(t.Context())
		runUntil(ctx, w.Custodian, done)
		w.alarm(1)
		w.looked()
		if w.pool.servers[0].known().FileMinimum(ean(1)) != 0 {
			t.Error("a version of which nobody can tell is the first")
		}
		if restart {
			w.looked()
			stop()
			w.must(<-done)
			w.exec(`INSERT INTO legal_file SELECT * FROM kept`)
			w.Custodian = w.another(w.copy + "3")
			ctx, stop = context.WithCancel(t.Context())
			runUntil(ctx, w.Custodian, done)
		} else {
			w.exec(`INSERT INTO legal_file SELECT * FROM kept`)
		}
		w.within("put back", func() bool { return w.everywhere(ean(1), 6) })
		w.alarm(0)
		stop()
		w.must(<-done)
	}
}

// TestDeletedBelow: what is deleted below the version that the feed names
// changes nothing, or whoever can delete a row could keep what is taken away
// later out of the feed.
func TestDeletedBelow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := w.registrar()
	f := r.steps(r.home(1), authz.RevokeConsent{ID: [16]byte{1}})
	w.running()
	w.within("the revocation", func() bool { return w.everywhere(ean(1), 5) })
	w.exec(`DELETE FROM legal_file WHERE ean = $1 AND version IN (1, 3, 4)`, ean(1).Int64())
	f = r.steps(f, authz.SetSupply{Supplier: gln(2), Days: open(firstDay + 200)})
	w.within("a switch", func() bool { return w.everywhere(ean(1), 6) })
	if got := w.strays(); len(got) != 0 || f.Version() != 6 {
		t.Errorf("%+v", got)
	}
}

// TestMadeUpNumber: a row under a number of its own hides neither that versions
// are gone nor what is taken away.
func TestMadeUpNumber(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := w.registrar()
	f, sealed := r.file(r.home(1), authz.RevokeConsent{ID: [16]byte{1}})
	w.must(r.db.StoreLegalFile(t.Context(), f, sealed))
	s := r.supplier(r.supplier(nil, nil), func(f *authz.SupplierFacts) { f.Suspended = true })
	w.running()
	w.within("the revocation", func() bool { return w.everywhere(ean(1), 5) })
	w.within("the suspension", func() bool { return w.pool.servers[0].known().SupplierMinimum(gln(1)) == 2 })
	w.exec(insertFile, ean(1).Int64(), int64(math.MaxInt64), sealed)
	w.exec(`INSERT INTO supplier (gln, version, record, sealed_at) VALUES ($1, $2, $3, now())`, gln(1).Int64(), int64(math.MaxInt64), must(authz.Seal(s.Payload(), w.pool.servers[0].signer)))
	w.alarm(2)
	if got := w.strays(); len(got) != 2 || got[0].Version != math.MaxInt64 || got[0].Why != "it is another version than its row says" || got[1].Kind != custodian.SupplierRecords || got[1].Why != got[0].Why {
		t.Errorf("%+v", got)
	}
	if w.metric("kluis_custodian_facts_behind") != 0 {
		t.Error("nothing is gone yet")
	}
	// What was taken away is gone: its number says that it is not.
	w.exec(`CREATE TABLE kept AS SELECT * FROM legal_file WHERE version = 5`)
	w.exec(`DELETE FROM legal_file WHERE ean = $1 AND version = 5`, ean(1).Int64())
	w.exec(`DELETE FROM supplier WHERE gln = $1 AND version = 2`, gln(1).Int64())
	w.within("that both are behind", func() bool { return w.metric("kluis_custodian_facts_behind") == 2 })
	found, err := w.CheckFacts(t.Context())
	w.must(err)
	if len(found.Behind) != 2 || found.Behind[0].Newest != 4 || found.Behind[1].Newest != 1 || len(found.Stray) != 2 {
		t.Errorf("%+v", found)
	}
	w.exec(`INSERT INTO legal_file SELECT * FROM kept`)
	// And with it there, what is taken away next is told.
	r.steps(f, authz.SetOptOut{Days: open(firstDay + 100)})
	w.within("an opt-out", func() bool { return w.everywhere(ean(1), 6) })
	w.exec(`DELETE FROM legal_file WHERE version = $1`, int64(math.MaxInt64))
	w.alarm(1)
}

// TestFactsThatDoNotVerify raise no minimum, or whoever writes to the database
// could end the reading of a metering point; nor does a genuine version where
// it does not belong.
func TestFactsThatDoNotVerify(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	r := w.registrar()
	f := r.home(1)
	w.running()
	w.looked()
	_, sealed := r.file(f, authz.RevokeConsent{ID: [16]byte{1}})
	forger := newSigner()
	next, err := authz.Apply(f, authz.RevokeConsent{ID: [16]byte{1}}, authz.Actor{Kind: authz.ByOperator, Name: "forger"}, time.Now(), amsterdam)
	w.must(err)
	w.exec(insertFile, ean(1).Int64(), 900, must(authz.Seal(next.Payload(), forger)))
	w.exec(insertFile, ean(1).Int64(), 901, []byte("junk"))
	w.exec(insertFile, ean(1).Int64(), 902, append(sealed[:len(sealed)-1:len(sealed)-1], sealed[len(sealed)-1]^1))
	w.exec(insertFile, ean(2).Int64(), 903, sealed)
	w.exec(insertFile, 17, 1, sealed)
	w.alarm(3)
	w.looked()
	if n := w.pool.servers[0].known().FileMinimum(ean(1)); n != 0 {
		t.Errorf("junk made version %d the first", n)
	}
	if w.pool.servers[0].known().FileMinimum(ean(2)) != 0 {
		t.Error("the columns were believed")
	}
	if got := w.strays(); len(got) != 3 || got[0].Subject != 17 || got[1].Version != 900 || got[1].Why != "it does not verify" || got[2].Why != "it is of another metering point or supplier" {
		t.Errorf("%+v", got)
	}
	if w.log.count(alarmStray) != 1 || w.log.count(ean(1).String()) > 0 {
		t.Error("the log does not say so once, or names a metering point")
	}
	// What is stored in its place, with the junk above it, is told.
	r.steps(f, authz.RevokeConsent{ID: [16]byte{1}})
	w.within("the revocation", func() bool { return w.everywhere(ean(1), 5) })
}

// TestManyStrayRows: of more than can be remembered none is forgotten.
func TestManyStrayRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) SELECT n, 1, 'junk', now() FROM generate_series(1, 1700) n`)
	w.running()
	w.within("the alarm", func() bool { return w.metric("kluis_custodian_facts_stray") == 1000 })
	w.within("the mark", func() bool { return w.value(`SELECT count(*) FROM fact_mark`) == "1" })
	if got := w.strays(); len(got) != 1700 {
		t.Errorf("%d", len(got))
	}
	w.exec(`DELETE FROM legal_file WHERE version = 1 AND ean <= 1650`)
	w.alarm(50)
	w.exec(`DELETE FROM legal_file WHERE version = 1 AND ean <= 1700`)
	w.alarm(0)
}
