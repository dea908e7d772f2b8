/* The Events pages: their tables, which work as Flower's table of tasks, and their refresh. */
/*global jQuery, moment */

(function ($) {
    "use strict";

    var MISSING = '<span class="value-missing">\u2014</span>',
        BADGES = {
            SUCCESS: 'text-bg-success',
            FAILURE: 'text-bg-danger',
            GIVEN_UP: 'text-bg-danger',
            STARTED: 'task-state-started',
            RETRY: 'text-bg-warning'
        },
        MAYBE_AN_ID = /^[A-Za-z0-9._:@+-]{1,200}$/,
        MOST_TASKS = 5,
        ROUNDS_AT_REST = 3,
        parameters = new URLSearchParams(window.location.search);

    // DataTables writes cells to innerHTML, and these texts may come from untrusted publishers.
    function escaped(text) {
        return String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;')
            .replace(/"/g, '&quot;').replace(/'/g, '&#39;');
    }

    function orMissing(text) {
        return text ? escaped(text) : MISSING;
    }

    // Text that may be longer than its column; a tooltip shows all of it.
    function clipped(text) {
        return text ? '<span title="' + escaped(text) + '">' + escaped(text) + '</span>' : MISSING;
    }

    // Seconds between two refreshes, 0 for never, as on Flower's page of workers.
    function refreshSeconds(page) {
        var asked = parseFloat(parameters.get('autorefresh'));
        return isNaN(asked) ? Number(page.dataset.refresh) : asked;
    }

    // Calls refresh(done) repeatedly while the page is visible; refresh calls done when it has finished.
    function repeat(page, refresh) {
        var seconds = refreshSeconds(page), due = true;
        if (!(seconds > 0)) {
            return;
        }
        window.setInterval(function () {
            if (due && !document.hidden) {
                due = false;
                refresh(function () {
                    due = true;
                });
            }
        }, Math.max(seconds, 0.2) * 1000);
    }

    function addressed(pattern, id) {
        return pattern.replace('__ID__', encodeURIComponent(id));
    }

    function linked(pattern, id, html) {
        return '<a href="' + escaped(addressed(pattern, id)) + '" title="' + escaped(id) + '">' + html + '</a>';
    }

    function shortened(id) {
        return escaped(id.length > 12 ? id.slice(0, 8) + '…' : id);
    }

    function eventLink(page, id) {
        return linked(page.dataset.eventUrl, id, '<span class="task-uuid-full">' + escaped(id) + '</span>' +
            '<span class="task-uuid-short">' + shortened(id) + '</span>');
    }

    function moments(page) {
        var natural = page.dataset.time.startsWith('natural-time'),
            zone = page.dataset.time.slice((natural ? 'natural-time' : 'time').length + 1) || 'UTC';
        return function (ms) {
            if (!ms) {
                return MISSING;
            }
            var at = moment(ms).tz(zone), full = at.format('YYYY-MM-DD HH:mm:ss.SSS');
            return '<time datetime="' + at.toISOString() + '" title="' + full + '">' +
                (natural ? '' : '<span class="bridge-moment">' + full + '</span>') +
                '<span class="' + (natural ? '' : 'bridge-muted bridge-age') + '">' + at.fromNow() + '</span></time>';
        };
    }

    function task(page, one) {
        var name = escaped(one.handler || 'task');
        return '<div class="bridge-task"><span class="badge ' + (BADGES[one.state] || 'text-bg-secondary') + '">' +
            escaped(one.state) + '</span>' +
            (one.known ? linked(page.dataset.taskUrl, one.id, name) : '<span>' + name + '</span>') + '</div>';
    }

    function tasks(page, all) {
        if (!all.length) {
            return '<span class="bridge-muted">no handlers</span>';
        }
        var failed = function (one) {
                return one.state === 'FAILURE' || one.state === 'GIVEN_UP';
            },
            sorted = all.filter(failed).concat(all.filter(function (one) {
                return !failed(one);
            })),
            more = all.length - MOST_TASKS;
        return sorted.slice(0, MOST_TASKS).map(function (one) {
            return task(page, one);
        }).join('') + (more > 0 ? '<div class="bridge-muted">and ' + more + ' more</div>' : '');
    }

    function eventColumns(page) {
        var time = moments(page);
        return [
            {data: 'at_ms', className: 'text-nowrap', width: '1%', render: time},
            {data: 'type', className: 'text-nowrap bridge-clip', render: function (data, _, row) {
                return clipped(data) + (row.replay ? ' <span class="badge text-bg-secondary">replay</span>' : '');
            }},
            {data: 'id', className: 'text-nowrap bridge-clip bridge-id', render: function (data) {
                return eventLink(page, data);
            }},
            {data: 'source', className: 'text-nowrap bridge-clip', render: clipped},
            {data: 'tasks', render: function (data) {
                return tasks(page, data);
            }}
        ];
    }

    function deadColumns(page) {
        var time = moments(page),
            columns = [
                {data: 'at_ms', className: 'text-nowrap', width: '1%', render: time},
                {data: 'reason', className: 'text-nowrap', render: function (data) {
                    return '<span class="badge text-bg-danger">' + escaped(data) + '</span>';
                }},
                {data: 'type', className: 'text-nowrap bridge-clip', render: clipped},
                {data: 'id', className: 'text-nowrap', render: function (data) {
                    return data ? linked(page.dataset.eventUrl, data, shortened(data)) : MISSING;
                }},
                {data: 'handler', className: 'text-nowrap bridge-clip', render: function (data, _, row) {
                    return data && row.known ? linked(page.dataset.taskUrl, row.task, escaped(data)) :
                        clipped(data || row.origin);
                }},
                {data: 'detail', className: 'bridge-wide', render: function (data) {
                    return '<span class="bridge-cut" title="' + escaped(data) + '">' + orMissing(data) + '</span>';
                }}
            ];
        if (page.dataset.retryUrl) {
            columns.push({data: 'dead_letter', className: 'text-end', width: '1%', render: function (data, _, row) {
                if (row.problem) {
                    return '<span class="bridge-muted text-nowrap" title="' + escaped(row.problem) +
                        '">cannot be retried</span>';
                }
                return '<button class="btn btn-sm btn-outline-danger bridge-retry" type="submit" form="bridge-retry"' +
                    ' formaction="' + escaped(addressed(page.dataset.retryUrl, data)) + '">Retry…</button>';
            }});
        }
        return columns;
    }

    function say(id, text) {
        var element = document.getElementById(id);
        if (element) {
            element.textContent = text;
            element.classList.toggle('d-none', !text);
        }
    }

    function showStatus(text, good) {
        var indicator = document.getElementById('bridge-indicator');
        indicator.classList.toggle('status-dot-live', good);
        indicator.classList.toggle('status-dot-error', !good);
        document.getElementById('bridge-status').textContent = text;
    }

    function showAnswer(answer) {
        say('bridge-down', answer.down);
        say('bridge-search-error', answer.searchError);
        showStatus(answer.down ? 'Update failed' : 'Updated ' + new Date().toLocaleTimeString(), !answer.down);
        if (!answer.down) {
            $('#bridge-dead-title').text(answer.dead_letters > answer.recordsTotal ? 'Newest ' +
                answer.recordsTotal.toLocaleString() + ' of ' + answer.dead_letters.toLocaleString() + ' dead letters' :
                'Dead letters');
        }
        $('#bridge-dead-letters').text(answer.down ? '?' : answer.dead_letters.toLocaleString())
            .toggleClass('text-bg-danger', answer.dead_letters > 0).toggleClass('text-bg-secondary', !answer.dead_letters);
        return answer.data;
    }

    function wording(page) {
        var what = page.dataset.list === 'dead' ? 'dead letters' : 'events';
        return {
            lengthMenu: '_MENU_',
            info: 'Showing _START_ to _END_ of _TOTAL_ ' + what,
            infoEmpty: 'No ' + what + ' to show',
            infoFiltered: '(of the newest _MAX_)',
            search: '<span class="visually-hidden">Search ' + what + '</span>',
            searchPlaceholder: what === 'events' ? 'id, source, or type as in dream.*' : 'id, type, reason, handler or detail',
            emptyTable: what === 'events' ? 'The journal is empty.' : 'There are no dead letters.',
            zeroRecords: 'No ' + what + ' match your search.' + (what === 'events' ?
                ' Enter looks for an id that begins like this among older events.' : '')
        };
    }

    function pressed(state) {
        $('.task-state-filter').each(function () {
            var selected = this.dataset.state === state;
            this.classList.toggle('active', selected);
            this.setAttribute('aria-pressed', selected);
        });
    }

    // Search and filter are part of the address, so that it can be shared and reloaded.
    function remember(search, state) {
        [['search', search], ['state', state]].forEach(function (pair) {
            if (pair[1]) {
                parameters.set(pair[0], pair[1]);
            } else {
                parameters.delete(pair[0]);
            }
        });
        var query = parameters.toString();
        window.history.replaceState(null, '', window.location.pathname + (query ? '?' + query : ''));
    }

    // Enter opens the only event in the list or, since the list has the newest ones only, the one whose id begins so.
    function openOnEnter(page, table) {
        var asked = null;
        $('#bridge-table_filter input').on('keydown', function (event) {
            if (event.key === 'Enter') {
                asked = this.value.trim();
                table.search(asked).draw();
            }
        });
        table.on('draw', function () {
            var rows = table.rows().data(),
                id = rows.length ? rows[0].id : asked;
            if (asked !== null && asked === table.search() && rows.length < 2 && MAYBE_AN_ID.test(id)) {
                window.location = addressed(page.dataset.eventUrl, id);
            }
            asked = null;
        });
    }

    function showList(page) {
        var state = parameters.get('state') || '',
            dead = page.dataset.list === 'dead',
            down = false,
            refreshed = $.noop,
            table = $('#bridge-table').DataTable({
                searching: true,
                searchDelay: 300,
                ordering: false,
                scrollX: true,
                scrollCollapse: true,
                serverSide: true,
                dom: "frt<'dt-footer'lip>",
                lengthMenu: [15, 30, 50, 100],
                pageLength: 15,
                search: {search: parameters.get('search') || ''},
                language: wording(page),
                ajax: {
                    url: page.dataset.url,
                    data: function (asked) {
                        remember(asked.search.value, state);
                        return {
                            draw: asked.draw,
                            start: asked.start,
                            length: asked.length,
                            search: asked.search.value,
                            state: state
                        };
                    },
                    dataSrc: function (answer) {
                        down = Boolean(answer.down);
                        return showAnswer(answer);
                    },
                    error: function () {
                        showStatus('Update failed', false);
                    },
                    complete: function () {
                        refreshed();
                    }
                },
                drawCallback: function () {
                    if (down) {  // an empty table would be wrong
                        $('#bridge-table .dataTables_empty').text('No data: Redis does not answer.');
                    }
                },
                initComplete: function () {
                    $('#bridge-table_length select').attr('aria-label', 'Rows per page');
                },
                columns: dead ? deadColumns(page) : eventColumns(page)
            });
        if (!dead) {
            openOnEnter(page, table);
        }
        pressed(state);
        $('.task-state-filter').on('click', function () {
            state = this.dataset.state;
            pressed(state);
            table.draw();
        });
        repeat(page, function (done) {
            refreshed = done;
            table.ajax.reload(null, false);
        });
    }

    function showEvent(page) {
        var round = 0;
        repeat(page, function (done) {
            var tree = document.getElementById('bridge-tree');
            round += 1;
            // Without waiting or running tasks little will change.
            if (tree && !tree.querySelector('[data-busy]') && round % ROUNDS_AT_REST) {
                done();
                return;
            }
            $.ajax({url: page.dataset.url, dataType: 'html'}).done(function (html, _, request) {
                if (page.dataset.down !== undefined) {
                    if (!request.getResponseHeader('Bridge-Down')) {
                        window.location.reload();
                    }
                } else if (tree && tree.dataset.shown !== html) {
                    tree.dataset.shown = html;
                    tree.innerHTML = html;
                }
            }).always(done);
        });
    }

    $(document).ready(function () {
        var list = document.getElementById('bridge-list'),
            event = document.getElementById('bridge-event');
        if (list) {
            showList(list);
        }
        if (event) {
            showEvent(event);
        }
    });
}(jQuery));
