package hsm

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

const reportWidth = 100

// WriteText writes the report for people.
func (r *CheckReport) WriteText(w io.Writer) error {
	b := &strings.Builder{}
	fmt.Fprintf(b, "HSM check of Kluis%s\n\n", map[bool]string{true: " (quick)"}[r.Quick])
	fmt.Fprintf(b, "module  %s\n", r.Module.Path)
	if r.Module.PKCS11 != "" {
		fmt.Fprintf(b, "        %s, %s, version %s, PKCS#11 %s\n", r.Module.Manufacturer, r.Module.Description, r.Module.Version, r.Module.PKCS11)
	}
	fmt.Fprintf(b, "token   %s\n", r.Token.Label)
	if r.Token.Manufacturer != "" {
		fmt.Fprintf(b, "        %s, %s, serial %s, hardware %s, firmware %s\n", r.Token.Manufacturer, r.Token.Model, r.Token.Serial, r.Token.Hardware, r.Token.Firmware)
	}
	fmt.Fprintln(b)
	for _, q := range r.Requirements {
		head := fmt.Sprintf("%-9s  %s", q.Result, strings.ReplaceAll(q.Title, "`", ""))
		indented(b, head+": ", strings.Repeat(" ", 11), q.Found)
		if q.Result != CheckFail && q.Result != CheckLimited {
			continue
		}
		within := strings.Repeat(" ", 11)
		indented(b, within+"means: ", within+"       ", strings.ReplaceAll(q.Means, "`", ""))
		if len(q.Roles) > 0 && q.Result == CheckFail {
			fmt.Fprintf(b, "%sroles: %s\n", within, roleList(q.Roles))
		}
		if q.Do != "" {
			indented(b, within+"do:    ", within+"       ", strings.ReplaceAll(q.Do, "`", ""))
		}
	}
	fmt.Fprintf(b, "\nKnown of SoftHSM\n")
	for _, q := range r.Quirks {
		indented(b, fmt.Sprintf("%-9s  ", q.Shows), strings.Repeat(" ", 11), q.What+": Kluis "+q.Kluis)
	}
	fmt.Fprintf(b, "\nRoles this token could serve\n")
	for _, v := range r.Roles {
		indented(b, fmt.Sprintf("%-9s  %-7s", v.Verdict, v.Role), strings.Repeat(" ", 18), strings.Join(v.Because, ", "))
	}
	if r.Recommended.Workers > 0 || r.Recommended.KeyCacheSize > 0 {
		fmt.Fprintf(b, "\nRecommended\n")
		if r.Recommended.Workers > 0 {
			fmt.Fprintf(b, "  workers: %d\n", r.Recommended.Workers)
		}
		if r.Recommended.KeyCacheSize > 0 {
			fmt.Fprintf(b, "  key_cache: {size: %d}\n", r.Recommended.KeyCacheSize)
		}
		if r.Recommended.RenewAfter > 0 {
			fmt.Fprintf(b, "  renew_after: %d\n", r.Recommended.RenewAfter)
		}
	}
	verdict := "FIT: no requirement that was tried fails."
	if !r.Fit {
		verdict = "UNFIT for the roles named above."
		if slices.ContainsFunc(r.Roles, func(v CheckedRole) bool { return v.Verdict == "FIT" || v.Verdict == "LIMITED" }) {
			verdict = "UNFIT for some roles; it could serve the others."
		}
	}
	fmt.Fprintf(b, "\n%s\n", verdict)
	_, err := io.WriteString(w, b.String())
	return err
}

func roleList(roles []Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// indented writes text after a head, its further lines after an indent.
func indented(b *strings.Builder, head, indent, text string) {
	line := head
	empty := true // nothing after the head or indent yet
	for word := range strings.FieldsSeq(text) {
		if !empty && len(line)+1+len(word) > reportWidth {
			fmt.Fprintln(b, strings.TrimRight(line, " "))
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(b, strings.TrimRight(line, " "))
}
