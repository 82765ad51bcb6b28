package server

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

func someFeedState(t testing.TB) feedState {
	return feedState{
		readings: FeedPlace{Arrived: 0x0102030405060708, EAN: 871687140000000019, ID: [16]byte{0x10, 15: 0x1f}}, run: 3, from: mustDay(t, "2026-03-01"),
		files: FeedPlace{Arrived: 9, EAN: 871687140000000019, Version: 7}, day: mustDay(t, "2026-03-02"), dayEAN: mustEAN(t, testEAN),
		expired: ExpiredConsent{At: time.Date(2026, 3, 29, 1, 0, 0, 123456000, time.UTC), EAN: mustEAN(t, testEAN), ID: [16]byte{0x20, 15: 0x2f}},
	}
}

// TestFeedStateGolden fixes what a cursor of the feed holds: gateways of one
// version read those of another.
func TestFeedStateGolden(t *testing.T) {
	t.Parallel()
	const golden = "01" + "0102030405060708" + "0c18dad5def9e813" + "1000000000000000000000000000001f" + "0003" + "00005021" +
		"0000000000000009" + "0c18dad5def9e813" + "0000000000000007" + "00005022" + "0c18dad5def9e813" +
		"00064e1f40e76640" + "0c18dad5def9e813" + "2000000000000000000000000000002f"
	want := someFeedState(t)
	b := want.encode()
	if got := hex.EncodeToString(b); got != golden {
		t.Errorf("got  %s\nwant %s", got, golden)
	}
	if got, err := parseFeedState(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range b {
		if _, err := parseFeedState(b[:n]); err == nil {
			t.Errorf("%d bytes of it are taken", n)
		}
	}
	if feedStateSize > maxCursorState {
		t.Error("it does not fit")
	}
}

// FuzzFeedState: whatever is taken is written the same.
func FuzzFeedState(f *testing.F) {
	s := someFeedState(f)
	f.Add(s.encode())
	f.Add(new(feedState).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseFeedState(b)
		if err != nil {
			return
		}
		if again := s.encode(); !bytes.Equal(again, b) {
			t.Errorf("%x becomes %x", b, again)
		}
	})
}

// TestCursorsOfTheFeedLast: longer than others; and they are of no use elsewhere.
func TestCursorsOfTheFeedLast(t *testing.T) {
	t.Parallel()
	c, err := newCursors([][32]byte{{1}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	of, err := c.of(cursorChanges, mustGLN(t, glnA), [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	s := someFeedState(t)
	text := of.seal(s.encode(), now)
	for after, want := range map[time.Duration]error{feedBack: nil, feedBack + time.Second: errCursorOld, cursorLife + time.Hour: nil, -time.Hour: errCursorOld} {
		if _, err := of.open(text, now.Add(after)); err != want {
			t.Errorf("after %v: %v", after, err)
		}
	}
	for _, k := range []cursorKind{cursorList, cursorQuery} {
		other, err := c.of(k, mustGLN(t, glnA), [32]byte{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.open(text, now); err != errCursor {
			t.Errorf("kind %d: %v", k, err)
		}
	}
	if _, err := parseFeedState(listState(mustEAN(t, testEAN))); err != errCursor {
		t.Error(err)
	}
}

// TestSameFields: what is told is, day by day and field by field, what was
// stored and is readable; runs do not overlap, and are as long as they can be.
func TestSameFields(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		fields := []meter.FieldCode{1, 2, 6}[:rapid.IntRange(1, 3).Draw(t, "fields")]
		from := meter.Day(rapid.IntRange(100, 120).Draw(t, "from"))
		days := meter.DayRange{From: from, To: from + meter.Day(rapid.IntRange(0, 20).Draw(t, "days"))}
		readable := map[meter.FieldCode]meter.DaySet{}
		for _, f := range []meter.FieldCode{1, 2, 6, 7} {
			var runs []meter.DayRange
			for range rapid.IntRange(0, 3).Draw(t, "runs") {
				a := meter.Day(rapid.IntRange(95, 145).Draw(t, "a"))
				runs = append(runs, meter.DayRange{From: a, To: a + meter.Day(rapid.IntRange(0, 9).Draw(t, "n"))})
			}
			runs = slices.DeleteFunc(runs, meter.DayRange.Empty)
			readable[f] = meter.NewDaySet(runs...)
		}
		parts := sameFields(fields, days, readable)
		for d := meter.Day(90); d < 160; d++ {
			var want, got []meter.FieldCode
			for _, f := range fields {
				if days.Contains(d) && readable[f].Contains(d) {
					want = append(want, f)
				}
			}
			for _, p := range parts {
				if p.Days.Contains(d) {
					got = append(got, p.Fields...)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("day %d: %v, want %v", d, got, want)
			}
		}
		for i := 1; i < len(parts); i++ {
			if parts[i].Days.From < parts[i-1].Days.To {
				t.Fatalf("%v after %v", parts[i].Days, parts[i-1].Days)
			}
		}
	})
}

// TestReached: no source is told beyond the transaction up to which the other is
// known, and none goes back.
func TestReached(t *testing.T) {
	t.Parallel()
	at := FeedPlace{Arrived: 7, EAN: 5}
	for _, c := range []struct {
		next FeedPlace
		left int
		last uint64
		want FeedPlace
	}{
		{at, 0, 9, at}, {at, 0, 7, at}, {at, 0, 6, FeedPlace{Arrived: 7}}, {at, 2, 6, FeedPlace{Arrived: 7}}, {FeedPlace{Arrived: 20}, 0, 9, FeedPlace{Arrived: 10}},
	} {
		if got := reached(c.next, c.left, c.last); got != c.want {
			t.Errorf("%+v: %+v", c, got)
		}
	}
	for id, want := range map[[16]byte][16]byte{{15: 1}: {}, {14: 1}: {15: 0xff}, {0: 1, 15: 9}: {0: 1, 15: 8}} {
		if got := before(id); got != want {
			t.Errorf("before %x: %x", id, got)
		}
	}
}

// TestUnchangedInTheLog: the customer sees that a supplier asked again and had it
// already; it is no read, and many of them are one line. As of when readings were
// asked for is said.
func TestUnchangedInTheLog(t *testing.T) {
	t.Parallel()
	f := twoCustomers(t)
	asked := request(t, "2026-04-10T10:00:00Z", "2026-03-05", "2026-03-08")
	asked.AsOf = time.Date(2026, 4, 1, 12, 0, 0, 0, time.UTC)
	again := asked
	again.Outcome, again.Receipt = audit.Unchanged, nil
	row, rowAgain := rowOf(t, asked), rowOf(t, again)
	given, shown, err := viewOf(t, f, "2026-03-01", nil).entry(&row)
	if err != nil || !shown || given.Outcome != openapi.GIVEN || given.AsOf == nil || !given.AsOf.Equal(asked.AsOf) || !given.gave() {
		t.Errorf("%+v, %v", given.AccessLogEntry, err)
	}
	had, shown, err := viewOf(t, f, "2026-03-01", nil).entry(&rowAgain)
	if err != nil || !shown || had.Outcome != openapi.UNCHANGED || had.Opened != 0 || len(had.Granted) != 1 || len(had.Withheld) != 0 || had.gave() {
		t.Errorf("%+v, %v", had.AccessLogEntry, err)
	}
	if e := wordsEN.entry(&had, dutch(t).Location()); e.Result != "Nothing new: the caller has this already, and was given no readings again" ||
		e.AskedDays != "Days: 5 March to 7 March 2026, as known on 1 April 2026 at 14:00" {
		t.Errorf("%q %q", e.Result, e.AskedDays)
	}
	// Of days of the other customer alone it tells this one nothing.
	of, shown, err := viewOf(t, f, "2024-01-01", nil).entry(&rowAgain)
	if err != nil || shown {
		t.Errorf("%+v, %v", of.AccessLogEntry, err)
	}
	v := viewOf(t, f, "2026-03-01", nil)
	v.bounds = statementBounds()
	for range 3 {
		if _, ok := v.add(had); !ok {
			t.Fatal("no room")
		}
	}
	if len(v.entries) != 1 || v.entries[0].requests != 3 || v.entries[0].AsOf == nil {
		t.Errorf("%d lines", len(v.entries))
	}
	had.AsOf = nil
	v.add(had)
	if v.entries[0].AsOf != nil {
		t.Error("as of when, though not all of them")
	}
}
