package meter

import "time"

// duration is the length of an interval, or 0 for calendar periods.
func (r Resolution) duration() time.Duration {
	switch r {
	case PT15M:
		return 15 * time.Minute
	case PT1H:
		return time.Hour
	default:
		return 0
	}
}

// Slots counts the periods of a resolution in a local day: 96 quarters or 24
// hours, fewer or more on the days the clocks change (92 and 100, 23 and 25),
// 1 for P1D and P1M. It is 0 for what is no resolution or no day (MaxDay).
func Slots(d Day, r Resolution, loc *time.Location) int {
	switch r {
	case PT15M, PT1H:
		length := (d + 1).Start(loc).Sub(d.Start(loc))
		// Where clocks move by half an hour the day's last hour is a short one.
		return max(0, int((length+r.duration()-1)/r.duration()))
	case P1D, P1M:
		return 1
	default:
		return 0
	}
}
