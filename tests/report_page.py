"""What a report says, read from its HTML, and what a comparison measures of a run."""

from html.parser import HTMLParser

from fedray.comparison.measures import measures_of, trajectory_of
from fedray.report.reading import read_run


class Page(HTMLParser):
    """The words of each table row and of all text; every address the page names; what is left open."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.addresses, self.anchors, self.open, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "action")]
        self.anchors += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, *start):
        return next(row for row in self.rows if tuple(row[: len(start)]) == start)


def measures(out, num_clients):
    """By name the value of each measure of the run in a folder, with all that it spent as its budget."""
    run = read_run(out)
    course = trajectory_of(run)
    found = measures_of(run, course, budgets=course.totals, target=0.5, clients=range(num_clients))
    return {one.name: one.value for one in found}
